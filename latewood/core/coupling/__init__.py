"""Channel coupling: which tensor axes change size together, and changing them in place."""

from latewood.core.coupling.additions import Addition, additions
from latewood.core.coupling.plan import (
    Barrier,
    BarrierKind,
    ChannelGroup,
    ChannelPlan,
    Member,
    Norm,
    Padding,
    Resized,
    Role,
)
from latewood.core.coupling.resize import slice_channels
from latewood.core.coupling.trace import trace_channels
from latewood.core.coupling.verify import VERIFIED_SIZE, verify_plan, verify_small_plan
from latewood.core.coupling.widening import NORMALISED, can_widen, widen_channels

__all__ = [
    "NORMALISED",
    "VERIFIED_SIZE",
    "Addition",
    "Barrier",
    "BarrierKind",
    "ChannelGroup",
    "ChannelPlan",
    "Member",
    "Norm",
    "Padding",
    "Resized",
    "Role",
    "additions",
    "can_widen",
    "slice_channels",
    "trace_channels",
    "verify_plan",
    "verify_small_plan",
    "widen_channels",
]
