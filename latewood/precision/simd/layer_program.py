"""A layer on the machine, instruction by instruction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latewood.errors import invalid
from latewood.precision.simd.machine import ACCUMULATORS, REGISTERS, Machine, wrap_int32
from latewood.precision.simd.machine_layer import MachineLayer, by_sample
from latewood.precision.simd.register_format import REGISTER_BYTES

__all__ = ["LayerRun", "run_layer"]


@dataclass(frozen=True)
class LayerRun:
    """What a layer came to on the machine.

    Args:
        accumulators: (samples, outputs[, height, width]) int32.
        instructions: how many were executed, by name.
        tiles: rectangles of positions and outputs that were computed together.
    """

    accumulators: NDArray[np.int32]
    instructions: dict[str, int]
    tiles: int


def run_layer(
    machine: Machine, layer: MachineLayer, inputs: ArrayLike, *, tile: tuple[int, int] = (4, 4)
) -> LayerRun:
    """Runs a layer on a machine, from the loads to the last accumulator.

    The machine's memory is made large enough and holds inputs, weights and masks as registers.

    Args:
        machine: whose pattern table holds the layer's patterns.
        layer: laid out.
        inputs: codes, (samples, channels) or (samples, channels, height, width).
        tile: (Mr, Nr) positions and outputs that are computed together: each register of inputs
            meets Nr of weights while it is loaded.

    Raises:
        RequestError: patterns that the machine lacks, a tile that its registers or accumulators
            cannot hold, inputs of another shape or with codes that do not fit.
    """
    _require_tile(tile, masked=layer.mask is not None)
    codes = np.asarray(inputs)
    if codes.dtype.kind not in "iu":
        raise invalid("inputs", codes.dtype, "codes, which are integers")
    columns, outside = layer.columns(codes)
    # Positions with the same taps outside the image share their corrections.
    classes, of_position = np.unique(outside, axis=0, return_inverse=True)
    starts = layer.corrections(classes)[of_position.reshape(-1)]
    slots = [machine.slot_of(int(pattern)) for pattern in layer.vector_patterns]
    memory = _Memory(machine, layer, layer.input_registers(columns))
    sums = np.zeros((len(columns), layer.outputs), dtype=np.int32)
    before = dict(machine.executed)
    tiles = 0
    for position in range(0, len(columns), tile[0]):
        for output in range(0, layer.outputs, tile[1]):
            rows = range(position, min(position + tile[0], len(columns)))
            outputs = range(output, min(output + tile[1], layer.outputs))
            _run_tile(machine, memory, slots, rows, outputs, starts, sums)
            tiles += 1
    instructions = {
        name: count - before.get(name, 0)
        for name, count in machine.executed.items()
        if count > before.get(name, 0)
    }
    return LayerRun(by_sample(sums, layer, codes.shape), instructions, tiles)


def _run_tile(
    machine: Machine,
    memory: _Memory,
    slots: Sequence[int],
    rows: range,
    outputs: range,
    starts: NDArray[np.int64],
    sums: NDArray[np.int32],
) -> None:
    """Sums up a tile: accumulator ``i * len(outputs) + j`` is that of row i and output j."""
    pairs = [(row, output) for row in rows for output in outputs]
    for acc, (row, output) in enumerate(pairs):
        machine.red(acc, 0, 0)
        machine.add(acc, wrap_int32(int(starts[row, output])))
    weights, masks = len(rows), len(rows) + len(outputs)
    for vector, slot in enumerate(slots):
        for i, row in enumerate(rows):
            machine.ld(i, memory.of_input(row, vector))
        for j, output in enumerate(outputs):
            machine.ld(weights + j, memory.of_weight(output, vector))
            if memory.masked:
                machine.ld(masks + j, memory.of_mask(output, vector))
        for acc in range(len(pairs)):
            i, j = divmod(acc, len(outputs))
            machine.vmac(acc, i, weights + j, slot, vm=masks + j if memory.masked else None)
    for acc, (row, output) in enumerate(pairs):
        sums[row, output] = machine.accumulators[acc]


class _Memory:
    """Inputs, weights and masks in the machine's memory, a register after the other."""

    def __init__(
        self, machine: Machine, layer: MachineLayer, input_registers: NDArray[np.uint8]
    ) -> None:
        parts = [input_registers.reshape(-1), layer.weight_registers.reshape(-1)]
        self.masked = layer.mask_registers is not None
        if layer.mask_registers is not None:
            parts.append(layer.mask_registers.reshape(-1))
        content = np.concatenate(parts)
        if len(machine.memory) < len(content):
            machine.memory = np.zeros(len(content), dtype=np.uint8)
        machine.memory[: len(content)] = content
        self._line = layer.vectors * REGISTER_BYTES
        self._weights = len(parts[0])
        self._masks = self._weights + len(parts[1])

    def of_input(self, row: int, vector: int) -> int:
        return row * self._line + vector * REGISTER_BYTES

    def of_weight(self, output: int, vector: int) -> int:
        return self._weights + output * self._line + vector * REGISTER_BYTES

    def of_mask(self, output: int, vector: int) -> int:
        return self._masks + output * self._line + vector * REGISTER_BYTES


def _require_tile(tile: tuple[int, int], *, masked: bool) -> None:
    rows, outputs = tile
    registers = rows + outputs * (2 if masked else 1)
    fits = min(tile) >= 1 and registers <= REGISTERS and rows * outputs <= ACCUMULATORS
    if not fits:
        expected = (
            f"two numbers of 1 and more that need at most {REGISTERS} registers and "
            f"{ACCUMULATORS} accumulators"
        )
        raise invalid("tile", tile, expected)
