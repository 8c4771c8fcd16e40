"""A machine with 1, 2 and 4-bit dot products in one register: its instructions, costs, patterns."""

from __future__ import annotations

from latewood.precision.simd.exploration import Exploration, PatternChoice, evaluate_set, explore
from latewood.precision.simd.layer_program import LayerRun, run_layer
from latewood.precision.simd.layer_records import CountedModel, count_layers, read_layers
from latewood.precision.simd.machine import Machine
from latewood.precision.simd.machine_costs import (
    DEFAULT_CONSTANTS,
    LayerCost,
    LayerCounts,
    MachineConstants,
    area,
    baseline_cost,
    energy,
    layer_cost,
)
from latewood.precision.simd.machine_layer import MachineLayer, lay_out, reference_accumulators
from latewood.precision.simd.register_format import pack_registers, unpack_registers
from latewood.precision.simd.trace import TraceWriter, read_trace, replay

__all__ = [
    "DEFAULT_CONSTANTS",
    "CountedModel",
    "Exploration",
    "LayerCost",
    "LayerCounts",
    "LayerRun",
    "Machine",
    "MachineConstants",
    "MachineLayer",
    "PatternChoice",
    "TraceWriter",
    "area",
    "baseline_cost",
    "count_layers",
    "energy",
    "evaluate_set",
    "explore",
    "lay_out",
    "layer_cost",
    "pack_registers",
    "read_layers",
    "read_trace",
    "reference_accumulators",
    "replay",
    "run_layer",
    "unpack_registers",
]
