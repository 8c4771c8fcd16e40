"""Channel coupling: which tensor axes change size together, and changing them in place."""

from latewood.core.coupling.additions import Addition, additions
from latewood.core.coupling.head_size import scale_queries, trace_head_sizes
from latewood.core.coupling.layer import Layer, LayerPart, LayerRole, LayerUse
from latewood.core.coupling.plan import (
    Barrier,
    BarrierKind,
    ChannelGroup,
    ChannelPlan,
    Member,
    Queries,
    Resized,
    Role,
    ScoreScale,
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
    "Queries",
    "Resized",
    "Role",
    "additions",
    "ScoreScale",
    "scale_queries",
    "slice_channels",
    "trace_channels",
    "trace_head_sizes",
    "verify_plan",
    "widen_channels",
]
