"""Channel coupling: which tensor axes change size together, and changing them in place."""

from latewood.core.coupling.additions import Addition, additions
from latewood.core.coupling.layer import Layer, LayerPart, LayerRole, LayerUse
from latewood.core.coupling.plan import (
    Barrier,
    BarrierKind,
    ChannelGroup,
    ChannelPlan,
    Member,
    Resized,
    Role,
)
from latewood.core.coupling.resize import slice_channels
from latewood.core.coupling.trace import trace_channels
from latewood.core.coupling.verify import verify_plan
from latewood.core.coupling.widening import widen_channels

__all__ = [
    "Addition",
    "Barrier",
    "BarrierKind",
    "ChannelGroup",
    "ChannelPlan",
    "Layer",
    "LayerPart",
    "LayerRole",
    "LayerUse",
    "Member",
    "Resized",
    "Role",
    "additions",
    "slice_channels",
    "trace_channels",
    "verify_plan",
    "widen_channels",
]
