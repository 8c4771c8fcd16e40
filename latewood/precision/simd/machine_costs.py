"""What the machine takes: energy of its instructions, cycles and energy of a layer, area."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from latewood.errors import invalid
from latewood.precision.patterns import PATTERNS, Pattern, PatternFit, pattern_set

__all__ = [
    "DEFAULT_CONSTANTS",
    "LayerCost",
    "LayerCounts",
    "MachineConstants",
    "area",
    "baseline_cost",
    "cycles",
    "energy",
    "layer_cost",
    "loads",
]


@dataclass(frozen=True, kw_only=True)
class MachineConstants:
    """Every number of the cost model; another machine is ``dataclasses.replace`` of this one.

    Energies in pJ are those of 45 nm at 0.9 V (Horowitz, ISSCC 2014). What they are extrapolated
    to is inferred [I]: multiplications go with the square of the width, additions with the width.

    Args:
        add8: integer addition of 8 bits.
        add32: of 32 bits.
        multiply8: integer multiplication of 8 bits.
        float_add: addition in float32.
        float_multiply: multiplication in float32.
        sram: 64 bits from the memory that registers are loaded from (8 KB).
        dram: 64 bits from main memory.
        mac_rate: dot products a cycle.
        load_rate: registers loaded a cycle.
        bandwidth: bytes loaded a cycle; infinite by default, where the load rate is the limit.
        tile_latency: cycles that a tile waits for the pipeline.
        tile_positions: (Mr) positions that a tile computes.
        tile_outputs: (Nr) outputs that a tile computes.
    """

    add8: float = 0.03
    add32: float = 0.1
    multiply8: float = 0.2
    float_add: float = 0.9
    float_multiply: float = 3.7
    sram: float = 10.0
    dram: float = 1950.0
    mac_rate: float = 1.0
    load_rate: float = 1.0
    bandwidth: float = float("inf")
    tile_latency: float = 4.0
    tile_positions: int = 4
    tile_outputs: int = 4

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, int | float | np.number) or not value >= 0:
                raise invalid(name, value, "a number, 0 or more")
        for name in ("mac_rate", "load_rate", "bandwidth", "tile_positions", "tile_outputs"):
            if not getattr(self, name) > 0:
                raise invalid(name, getattr(self, name), "more than 0")

    def multiply(self, bits: float) -> float:
        """Energy of an integer multiplication, pJ: ``multiply8 (bits / 8)^2``."""
        return self.multiply8 * (bits / 8) ** 2

    def add(self, bits: float) -> float:
        """Energy of an integer addition, pJ: linear to 8 bits, and from there on to 32."""
        if bits <= 8:
            return self.add8 * bits / 8
        return self.add8 + (bits - 8) * (self.add32 - self.add8) / 24


DEFAULT_CONSTANTS: Final = MachineConstants()
"""The published constants."""


@dataclass(frozen=True)
class LayerCounts:
    """What the cost of a layer depends on.

    Args:
        name: of the layer.
        counts: elements (n4, n2, n1) of one output's dot product: channels times taps.
        outputs: output channels or units.
        positions: where the dot product is computed in one sample: pixels, tokens, or 1.

    Raises:
        RequestError: numbers that are negative or not whole.
    """

    name: str
    counts: tuple[int, int, int]
    outputs: int = 1
    positions: int = 1

    def __post_init__(self) -> None:
        try:
            n4, n2, n1 = (operator.index(count) for count in self.counts)
            numbers = [n4, n2, n1, operator.index(self.outputs), operator.index(self.positions)]
        except (TypeError, ValueError):
            numbers = [-1]
        if min(numbers) < 0:
            given = f"{self.counts}, {self.outputs} outputs, {self.positions} positions"
            raise invalid(self.name or "layer", given, "whole numbers, 0 or more")
        object.__setattr__(self, "counts", tuple(numbers[:3]))
        object.__setattr__(self, "outputs", numbers[3])
        object.__setattr__(self, "positions", numbers[4])

    @property
    def elements(self) -> int:
        """(K) elements of one dot product."""
        return sum(self.counts)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one sample."""
        return self.elements * self.outputs * self.positions


@dataclass(frozen=True)
class LayerCost:
    """What a layer takes for one sample.

    Args:
        instructions: dot products of registers (vmac).
        cycles: of the tiles, one after the other.
        compute_pj: energy of the dot products.
        load_pj: energy of loading registers from the nearest memory.
        weight_pj: energy of reading the weights once from main memory.
        weight_bits: of the weights as they are stored, without padding.
    """

    instructions: int
    cycles: float
    compute_pj: float
    load_pj: float
    weight_pj: float
    weight_bits: int


def energy(
    pattern: int | Pattern,
    constants: MachineConstants = DEFAULT_CONSTANTS,
    *,
    per: Literal["mac", "instruction"] = "mac",
) -> float:
    r"""Energy in pJ of a multiply-accumulate in a full register of a pattern.

    .. math:: \sum_j (E_\times(p_j) + E_+(2 p_j + 4)) + E_+(32)

    is what the whole instruction takes; a multiply-accumulate is its N-th part.

    Args:
        pattern: granules (g4, g2, g1), or the index of a pattern.
        constants: of the machine.
        per: "mac", or "instruction" for the whole register.

    Returns:
        0.0948, 0.0441 and 0.0264 pJ for the uniform patterns of 4, 2 and 1 bits.

    Raises:
        RequestError: no such pattern, or another ``per``.
    """
    index = pattern_set([pattern])[0]
    elements = [16 // p * g for p, g in zip((4, 2, 1), PATTERNS[index], strict=True)]
    total = constants.add32 + sum(
        number * (constants.multiply(p) + constants.add(2 * p + 4))
        for p, number in zip((4, 2, 1), elements, strict=True)
    )
    if per not in ("mac", "instruction"):
        raise invalid("per", per, "'mac' or 'instruction'")
    return total if per == "instruction" else total / sum(elements)


def area(patterns: int | Iterable[int | Pattern]) -> int:
    """A proxy of the area of a unit that computes these patterns: cells and adders.

    Each of the eight granules needs as many cells of single-bit products as the widest elements
    that lie in it take (64, 32 or 16 for 4, 2 or 1 bits), and an adder for each product but one in
    the mode with the most of them (4, 8 or 16 products).

    Args:
        patterns: as in ``pattern_set``.

    Source:
        Cells from the spec of 4x4, 2x2 and 1x1 products; the adders are inferred [I].
    """
    modes: list[set[int]] = [set() for _ in range(8)]
    for index in pattern_set(patterns):
        g4, g2, _ = PATTERNS[index]
        for granule, used in enumerate(modes):
            used.add(4 if granule < g4 else 2 if granule < g4 + g2 else 1)
    return sum(16 * max(used) + 16 // min(used) - 1 for used in modes)


def cycles(
    vectors: NDArray[np.integer] | int,
    outputs: int,
    positions: int,
    constants: MachineConstants = DEFAULT_CONSTANTS,
) -> Any:
    """Cycles of all tiles of a layer, one after the other.

    A tile takes ``max(vmac / R_mac, loads / R_ld, bytes / BW) + t_tile``.

    Args:
        vectors: registers of one dot product; a number or an array.
        outputs: of the layer.
        positions: of the layer.
        constants: of the machine.

    Returns:
        A number, or an array of the shape of ``vectors``.
    """
    total: Any = 0.0
    for count, rows, columns in _tiles(outputs, positions, constants):
        work = max(
            rows * columns / constants.mac_rate,
            (rows + columns) / constants.load_rate,
            16 * (rows + columns) / constants.bandwidth,
        )
        total = total + count * (vectors * work + constants.tile_latency)
    return total


def loads(outputs: int, positions: int, constants: MachineConstants = DEFAULT_CONSTANTS) -> int:
    """Registers loaded in a layer for each register of one dot product."""
    tiles = _tiles(outputs, positions, constants)
    return sum(count * (rows + columns) for count, rows, columns in tiles)


def layer_cost(
    layer: LayerCounts, fit: PatternFit, constants: MachineConstants = DEFAULT_CONSTANTS
) -> LayerCost:
    """What a layer takes whose elements lie in registers like this.

    Args:
        layer: with its size.
        fit: of its elements.
        constants: of the machine.
    """
    times = layer.outputs * layer.positions
    compute = sum(
        number * energy(index, constants, per="instruction") for index, number in fit.uses
    )
    in4, in2, in1 = fit.occupied
    bits = layer.outputs * (4 * in4 + 2 * in2 + in1)
    return _cost(layer, fit.vectors, times * compute, bits, constants)


def baseline_cost(
    layer: LayerCounts,
    kind: Literal["float32", "int8"],
    constants: MachineConstants = DEFAULT_CONSTANTS,
) -> LayerCost:
    """What the same layer takes in float32 or int8 on 128-bit registers of 4 or 16 numbers.

    Args:
        layer: with its size; the bits of its elements do not matter.
        kind: of numbers.
        constants: of the machine.

    Raises:
        RequestError: another kind.
    """
    kinds = {
        "float32": (32, constants.float_multiply + constants.float_add),
        "int8": (8, constants.multiply8 + constants.add32),
    }
    if kind not in kinds:
        raise invalid("kind", kind, "'float32' or 'int8'")
    bits, per_mac = kinds[kind]
    vectors = -(-layer.elements // (128 // bits))
    weight_bits = bits * layer.elements * layer.outputs
    return _cost(layer, vectors, layer.macs * per_mac, weight_bits, constants)


def _cost(
    layer: LayerCounts,
    vectors: int,
    compute: float,
    weight_bits: int,
    constants: MachineConstants,
) -> LayerCost:
    loaded = vectors * loads(layer.outputs, layer.positions, constants)
    return LayerCost(
        instructions=vectors * layer.outputs * layer.positions,
        cycles=float(cycles(vectors, layer.outputs, layer.positions, constants)),
        compute_pj=compute,
        load_pj=loaded * 2 * constants.sram,
        weight_pj=weight_bits / 64 * constants.dram,
        weight_bits=weight_bits,
    )


def _tiles(outputs: int, positions: int, constants: MachineConstants) -> list[tuple[int, int, int]]:
    """How many tiles there are of how many positions and outputs; smaller ones at the edges."""
    rows, row_rest = divmod(positions, constants.tile_positions)
    columns, column_rest = divmod(outputs, constants.tile_outputs)
    kinds = [
        (rows * columns, constants.tile_positions, constants.tile_outputs),
        (rows * (column_rest > 0), constants.tile_positions, column_rest),
        ((row_rest > 0) * columns, row_rest, constants.tile_outputs),
        ((row_rest > 0) * (column_rest > 0), row_rest, column_rest),
    ]
    return [kind for kind in kinds if kind[0]]
