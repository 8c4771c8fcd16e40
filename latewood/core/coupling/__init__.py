"""Channel coupling: which tensor axes change size together, and changing them in place."""

from latewood.core.coupling.plan import (
    Barrier,
    BarrierKind,
    ChannelGroup,
    ChannelPlan,
    Member,
    Resized,
    Role,
)
from latewood.core.coupling.trace import trace_channels

__all__ = [
    "Barrier",
    "BarrierKind",
    "ChannelGroup",
    "ChannelPlan",
    "Member",
    "Resized",
    "Role",
    "trace_channels",
]
