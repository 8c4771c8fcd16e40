"""A machine with 1, 2 and 4-bit dot products in one register: its instructions, costs, patterns."""

from __future__ import annotations

from latewood.precision.simd.machine import Machine
from latewood.precision.simd.register_format import pack_registers, unpack_registers

__all__ = ["Machine", "pack_registers", "unpack_registers"]
