"""How an integer lies in memory cells: which digit each holds, and what it counts when read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["GOOD", "HRS", "LRS", "MINUS", "PLUS", "UNSIGNED", "Cell", "CellLayout"]

PLUS: Final = 0
"""A cell that holds a digit of a positive number, and rests at 0 under a negative one."""
MINUS: Final = 1
"""A cell that holds a digit of the size of a negative number."""
UNSIGNED: Final = 2
"""A cell that holds a digit of a number made non-negative."""

GOOD: Final = 0
HRS: Final = 1
LRS: Final = 2
"""States of a cell: as programmed, stuck in the high-resistance state (level 0) or in the
low-resistance state (the highest level)."""


@dataclass(frozen=True)
class Cell:
    """One of the cells of a weight.

    Args:
        source: PLUS, MINUS or UNSIGNED, the number that it holds a digit of.
        slice: of its digit, 0 the least significant.
        shift: bits below the digit.
        sign: of what it counts, 1 or -1.
        stuck: the digit that is read where it is stuck in the low-resistance state.
    """

    source: int
    slice: int
    shift: int
    sign: int
    stuck: int


@dataclass(frozen=True)
class CellLayout:
    """The cells of every weight, in the order in which their faults are drawn.

    Args:
        cells: in the order (array, slice).
        digit_bits: bits of a cell.
        offset: added to the integer before it is cut into digits, and taken off when read.
        width: bits of the number that UNSIGNED cells hold.
        clamped: whether a digit stuck at its highest is at most the highest legal one, also where
            integers have bits of their own.
    """

    cells: tuple[Cell, ...]
    digit_bits: int
    offset: int
    width: int
    clamped: bool = False
