"""Channel coupling: which tensor axes change size together, and changing them in place."""

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
from latewood.core.coupling.resize import slice_channels, widen_channels
from latewood.core.coupling.trace import trace_channels
from latewood.core.coupling.verify import verify_plan

__all__ = [
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
    "slice_channels",
    "trace_channels",
    "verify_plan",
    "widen_channels",
]
