"""What several rooms share: protocols, layer selection, schedules, transformations, safe files."""

from latewood.core.batch_norm import recalibrate_batch_norm
from latewood.core.coupling import (
    Barrier,
    ChannelGroup,
    ChannelPlan,
    Layer,
    LayerPart,
    LayerUse,
    Member,
    Queries,
    scale_queries,
    slice_channels,
    trace_channels,
    trace_head_sizes,
    verify_plan,
    widen_channels,
)
from latewood.core.epochs import EpochCounter, Epochs, StepsPerEpoch
from latewood.core.finalize import SHAPES, EndsOnce, finalize
from latewood.core.groups import parameter_groups
from latewood.core.macs import macs
from latewood.core.protocols import Method, Observation, Probe, Restructuring
from latewood.core.schedules import (
    Schedule,
    constant,
    cosine,
    cubic,
    exponential,
    linear,
    progress,
    schedule,
    step_decay,
    with_warmup,
)
from latewood.core.selection import WEIGHT_LAYERS, Selected, select_parameters, stored_tensor
from latewood.core.state import load_state, save_state
from latewood.core.state_rules import StateRule, register_state_rule, state_rule
from latewood.core.tensor_files import read_tensors
from latewood.core.transforms import (
    FAULTS,
    MASK,
    PRECISION,
    Follows,
    attach,
    bake,
    detach,
    transformations,
)

__all__ = [
    "FAULTS",
    "MASK",
    "PRECISION",
    "SHAPES",
    "WEIGHT_LAYERS",
    "Barrier",
    "ChannelGroup",
    "ChannelPlan",
    "EndsOnce",
    "EpochCounter",
    "Epochs",
    "Follows",
    "Layer",
    "LayerPart",
    "LayerUse",
    "Member",
    "Method",
    "Observation",
    "Probe",
    "Queries",
    "Restructuring",
    "Schedule",
    "Selected",
    "StepsPerEpoch",
    "StateRule",
    "attach",
    "bake",
    "constant",
    "cosine",
    "cubic",
    "detach",
    "exponential",
    "finalize",
    "linear",
    "load_state",
    "macs",
    "parameter_groups",
    "progress",
    "read_tensors",
    "recalibrate_batch_norm",
    "register_state_rule",
    "save_state",
    "scale_queries",
    "schedule",
    "select_parameters",
    "slice_channels",
    "step_decay",
    "state_rule",
    "stored_tensor",
    "trace_channels",
    "trace_head_sizes",
    "transformations",
    "verify_plan",
    "widen_channels",
    "with_warmup",
]
