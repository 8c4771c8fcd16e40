"""A machine with 1, 2 and 4-bit dot products in one register: its instructions, costs, patterns."""

from __future__ import annotations

from latewood.precision.simd.layer_program import LayerRun, run_layer
from latewood.precision.simd.machine import Machine
from latewood.precision.simd.machine_layer import MachineLayer, lay_out, reference_accumulators
from latewood.precision.simd.register_format import pack_registers, unpack_registers
from latewood.precision.simd.trace import TraceWriter, read_trace, replay

__all__ = [
    "LayerRun",
    "Machine",
    "MachineLayer",
    "TraceWriter",
    "lay_out",
    "pack_registers",
    "read_trace",
    "reference_accumulators",
    "replay",
    "run_layer",
    "unpack_registers",
]
