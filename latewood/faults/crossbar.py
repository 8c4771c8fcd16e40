"""How weights lie on a crossbar: their integers, the cells of each, and the size of an array."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from latewood.errors import invalid
from latewood.kernels.faults import MINUS, PLUS, UNSIGNED, Cell, CellLayout

__all__ = ["Crossbar", "Scheme"]

Scheme = Literal["differential", "offset", "twos", "pair"]

_SCHEMES = ("differential", "offset", "twos", "pair")
_MOST_BITS = 16


@dataclass(frozen=True)
class Crossbar:
    r"""How the weights of a layer are held by the cells of RRAM crossbars.

    A weight becomes :math:`q = \mathrm{clip}(\mathrm{round}(w / s), -q_{\max}, q_{\max})` with
    :math:`q_{\max} = 2^{B-1} - 1` and :math:`s = \max |W| / q_{\max}`, and q is cut into digits of
    :math:`L = 2^b` levels, one a cell.

    Args:
        weight_bits: (B) of a weight with its sign, 2 to 16.
        bits_per_cell: (b) of a cell, 1 to 8.
        scheme: "differential" holds the size of q in the array of its sign, 2 S cells a weight
            with :math:`S = \lceil (B-1) / b \rceil`; "offset" holds :math:`q + 2^{B-1}` in
            :math:`\lceil B / b \rceil` cells; "twos" holds two's complement in B cells of one bit;
            "pair" holds w itself, as an analog level, in a cell a sign.
        tile: rows and columns of an array.
        top_slice: what is read of the highest digit where it is stuck at the low-resistance state:
            "physical" is the highest level, also where the digit of no weight is as high, and
            "clamped" the highest digit of a weight.
        granularity: "tensor" has one s for a weight tensor, "channel" one for each output channel.

    Raises:
        RequestError: an argument out of range, or cells that do not hold the weights.

    Source: the schemes are those of ISAAC and later accelerators; the defaults are ours. (7, 2) is
    aligned: b divides B - 1, so that no level of the highest digit is unused.
    """

    weight_bits: int = 7
    bits_per_cell: int = 2
    scheme: Scheme = "differential"
    tile: tuple[int, int] = (128, 128)
    top_slice: Literal["physical", "clamped"] = "physical"
    granularity: Literal["tensor", "channel"] = "tensor"

    def __post_init__(self) -> None:
        _require_integer("weight_bits", self.weight_bits, 2, _MOST_BITS)
        _require_integer("bits_per_cell", self.bits_per_cell, 1, 8)
        if self.scheme not in _SCHEMES:
            raise invalid("scheme", self.scheme, f"one of {', '.join(map(repr, _SCHEMES))}")
        if self.scheme == "twos" and self.bits_per_cell != 1:
            expected = "1 with scheme='twos', whose cells hold a bit each"
            raise invalid("bits_per_cell", self.bits_per_cell, expected)
        if not isinstance(self.tile, tuple | list) or len(self.tile) != 2:
            raise invalid("tile", self.tile, "two numbers, rows and columns")
        for size in self.tile:
            _require_integer("tile", size, 1, 2**20)
        object.__setattr__(self, "tile", tuple(self.tile))
        if self.top_slice not in ("physical", "clamped"):
            raise invalid("top_slice", self.top_slice, "'physical' or 'clamped'")
        if self.granularity not in ("tensor", "channel"):
            raise invalid("granularity", self.granularity, "'tensor' or 'channel'")
        if self.is_analog:
            return
        if self.weight_bits + self.bits_per_cell > 24:
            # A highest level that no weight has would leave what float32 holds exactly.
            raise invalid("bits_per_cell", self.bits_per_cell, "cells that fit 24 bits")
        if self.bits_per_cell > self.digit_bits:
            expected = f"at most {self.digit_bits}, what a {self.scheme} weight of "
            expected += f"{self.weight_bits} bits fills; a cell beyond that would never be full"
            raise invalid("bits_per_cell", self.bits_per_cell, expected)

    @property
    def is_analog(self) -> bool:
        """Whether a cell holds a real number ("pair")."""
        return self.scheme == "pair"

    @property
    def largest(self) -> int:
        """(q_max) The largest integer of a weight; 1 for analog pairs, whose q is w / max |W|."""
        return 1 if self.is_analog else (1 << (self.weight_bits - 1)) - 1

    @property
    def levels(self) -> int:
        """(L) Levels of a cell."""
        return 1 << self.bits_per_cell

    @property
    def digit_bits(self) -> int:
        """Bits that are cut into digits: B - 1 where a pair of arrays holds the sign, else B."""
        return self.weight_bits - 1 if self.scheme == "differential" else self.weight_bits

    @property
    def slices(self) -> int:
        """(S) Cells of a weight in an array."""
        return 1 if self.is_analog else math.ceil(self.digit_bits / self.bits_per_cell)

    @property
    def arrays(self) -> int:
        """Arrays that hold a weight: 2 where there is one for each sign."""
        return 2 if self.scheme in ("differential", "pair") else 1

    @property
    def cells_per_weight(self) -> int:
        """Cells of a weight."""
        return self.arrays * self.slices

    @property
    def aligned(self) -> bool:
        """Whether every level of the highest digit is that of some weight."""
        return self.is_analog or self.digit_bits % self.bits_per_cell == 0

    @cached_property
    def layout(self) -> CellLayout:
        """The cells of a weight in the order in which faults are drawn; not of analog pairs."""
        return self.layout_of(self.digit_bits)

    def layout_of(self, digit_bits: int) -> CellLayout:
        """The cells of a weight whose digits have so many bits in all.

        Args:
            digit_bits: bits without the sign where a pair of arrays holds it.
        """
        slices = math.ceil(digit_bits / self.bits_per_cell)
        clamped = self.top_slice == "clamped"
        sources = (PLUS, MINUS) if self.scheme == "differential" else (UNSIGNED,)
        cells = []
        for source in sources:
            for k in range(slices):
                shift = k * self.bits_per_cell
                left = min(digit_bits - shift, self.bits_per_cell)
                negative = source == MINUS or (self.scheme == "twos" and k == slices - 1)
                stuck = 2 ** (left if clamped else self.bits_per_cell) - 1
                cells.append(Cell(source, k, shift, -1 if negative else 1, stuck))
        offset = 2 ** (self.weight_bits - 1) if self.scheme == "offset" else 0
        return CellLayout(tuple(cells), self.bits_per_cell, offset, self.weight_bits, clamped)


def _require_integer(name: str, value: object, least: int, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise invalid(name, value, f"a whole number from {least} to {most}")
