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
    Norm,
    Padding,
    Queries,
    Resized,
    Role,
    ScoreScale,
)
from latewood.core.coupling.resize import slice_channels
from latewood.core.coupling.trace import trace_channels
from latewood.core.coupling.verify import VERIFIED_SIZE, verify_plan, verify_small_plan
from latewood.core.coupling.widening import NORMALISED, can_widen, widen_channels

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
    "NORMALISED",
    "Norm",
    "Padding",
    "Queries",
    "Resized",
    "Role",
    "ScoreScale",
    "VERIFIED_SIZE",
    "additions",
    "can_widen",
    "scale_queries",
    "slice_channels",
    "trace_channels",
    "trace_head_sizes",
    "verify_plan",
    "verify_small_plan",
    "widen_channels",
]
