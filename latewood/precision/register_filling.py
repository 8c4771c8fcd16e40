"""The fewest registers of given patterns that hold a layer's elements, solved exactly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from latewood.errors import WorkError

__all__ = ["MOST_ELEMENTS", "fill_registers"]

MOST_ELEMENTS: Final = 2**40
"""More elements than this in one layer are refused: float64 would no longer tell them apart."""

_Counts = tuple[int, int, int]

_ROW: Final = 2048
"""Bits of a row of reachable granules: 2-bit granules of at most 255 registers."""


def fill_registers(
    channels: _Counts, patterns: Sequence[_Counts], taps: int = 1, *, promote: bool = True
) -> list[int]:
    """How many registers of each pattern: fewest in all, then fewest promoted, then lowest first.

    A channel has ``taps`` elements in slots of one width, which may be wider than it needs.

    Args:
        channels: (c4, c2, c1) channels of 4, 2 and 1 bits.
        patterns: (g4, g2, g1) granules, in the order that decides ties; some as wide as the widest
            channel.
        taps: elements of a channel.
        promote: whether channels may lie in wider slots; otherwise each width needs its own.

    Returns:
        A number of registers for each pattern.
    """
    if not any(channels):
        return [0] * len(patterns)
    # Up to here a search through everything that can be reached takes a fraction of a second.
    limit = 255 if len(patterns) <= 8 else 64
    if _lower_bound(channels, patterns, taps) <= limit:
        chosen = _by_reachable_sums(channels, patterns, taps, limit, promote)
        if chosen is not None:
            return chosen
    return _by_integer_program(channels, patterns, taps, promote)


def _lower_bound(channels: _Counts, patterns: Sequence[_Counts], taps: int) -> int:
    c4, c2, c1 = (taps * count for count in channels)
    slots = [(4 * g4, 8 * g2, 16 * g1) for g4, g2, g1 in patterns]
    needs = (
        (c4, max(s4 for s4, _, _ in slots)),
        (c4 + c2, max(s4 + s2 for s4, s2, _ in slots)),
        (c4 + c2 + c1, max(sum(s) for s in slots)),
    )
    return max(-(-needed // most) for needed, most in needs if needed)


def _by_reachable_sums(
    channels: _Counts, patterns: Sequence[_Counts], taps: int, limit: int, promote: bool
) -> list[int] | None:
    """Follows all sums of granules that 0, 1, 2, ... registers reach; None beyond ``limit``.

    A set of pairs (4-bit, 2-bit granules) is one long integer with a bit for each pair; the 1-bit
    granules are the rest.
    """
    shifts = [_ROW * g4 + g2 for g4, g2, _ in patterns]
    reachable = [1]
    least = _lower_bound(channels, patterns, taps)
    for vectors in range(1, limit + 1):
        sums = 0
        for shift in shifts:
            sums |= reachable[-1] << shift
        reachable.append(sums)
        if vectors >= least:
            targets = _best_sums(channels, taps, vectors, sums, promote)
            if targets:
                return _first_way(targets, reachable, shifts)
    return None


def _best_sums(channels: _Counts, taps: int, vectors: int, sums: int, promote: bool) -> int:
    """Those of the reachable sums that hold all channels with the fewest promotions."""
    rows = 8 * vectors + 1
    packed = np.frombuffer(sums.to_bytes(rows * _ROW // 8, "little"), dtype=np.uint8)
    g4, g2 = np.nonzero(np.unpackbits(packed, bitorder="little").reshape(rows, _ROW))
    c4, c2, c1 = channels
    room4, room2 = 4 * g4 // taps, 8 * g2 // taps
    room1 = 16 * (rows - 1 - g4 - g2) // taps
    fits = (room4 >= c4) & (room4 + room2 >= c4 + c2) & (room4 + room2 + room1 >= c4 + c2 + c1)
    promoted = np.maximum(0, c2 - room2) + np.maximum(0, c1 - room1)
    if not promote:
        fits &= promoted == 0
    if not fits.any():
        return 0
    best = np.flatnonzero(fits & (promoted == promoted[fits].min()))
    return sum(1 << (_ROW * int(g4[place]) + int(g2[place])) for place in best)


def _first_way(targets: int, reachable: list[int], shifts: list[int]) -> list[int]:
    """Goes back from the sums to nothing, always by the first pattern that leads there."""
    chosen = [0] * len(shifts)
    for sums in reversed(reachable[:-1]):
        for place, shift in enumerate(shifts):
            before = (targets >> shift) & sums
            if before:
                chosen[place] += 1
                targets = before
                break
    return chosen


def _by_integer_program(
    channels: _Counts, patterns: Sequence[_Counts], taps: int, promote: bool = True
) -> list[int]:
    """The same for layers of many registers, one integer program for each criterion.

    Unknowns are the registers of each pattern and the channels moved from 2 to 4, 1 to 4 and 1 to 2
    bits. All coefficients are integers, so a solution rounded to integers is exact.
    """
    c4, c2, c1 = channels
    number = len(patterns)
    g4, g2, g1 = np.array(patterns, dtype=float).T
    # Room minus channels, in elements, for each of the widths and for the two sources.
    rows = [
        np.concatenate([4 * g4, [-taps, -taps, 0]]),
        np.concatenate([8 * g2, [taps, 0, -taps]]),
        np.concatenate([16 * g1, [0, taps, taps]]),
        np.concatenate([np.zeros(number), [0, -1, -1]]),
    ]
    least = [taps * c4, taps * c2, taps * c1, -c1]
    most = np.full(number + 3, np.inf)
    most[number:] = (c2, c1, c1) if promote else 0
    vectors = np.concatenate([np.ones(number), np.zeros(3)])
    moved = np.concatenate([np.zeros(number), np.ones(3)])
    criteria = [vectors, moved]
    criteria += [-np.eye(number + 3)[place] for place in range(number - 1)]
    program = _Program(np.array(rows), np.array(least, dtype=float), most)
    solution = program.lexicographic(criteria)
    chosen = [int(count) for count in solution[:number]]
    exact = [
        sum(int(entry) * int(count) for entry, count in zip(row, solution, strict=True)) >= bound
        for row, bound in zip(rows, least, strict=True)
    ]
    if not all(exact):
        raise WorkError(f"no exact solution found for {channels} channels of {taps} elements")
    return chosen


class _Program:
    """Minimises one integer criterion after the other, ``rows @ x >= least``, ``0 <= x <= most``.

    Args:
        rows: (constraints, n) coefficients.
        least: (constraints,) bounds.
        most: (n,) largest values.
    """

    def __init__(
        self, rows: NDArray[np.float64], least: NDArray[np.float64], most: NDArray[np.float64]
    ) -> None:
        self._rows, self._least, self._most = rows, least, most

    def lexicographic(self, criteria: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
        """Integers that minimise the criteria in their order."""
        # Costly to import, and needed for very large layers only.
        from scipy.optimize import Bounds, LinearConstraint, milp

        constraints: list[Any] = [LinearConstraint(self._rows, self._least)]
        found: NDArray[np.float64] = np.zeros(self._rows.shape[1])
        for criterion in criteria:
            done = milp(
                criterion,
                integrality=np.ones(len(criterion)),
                bounds=Bounds(0, self._most),
                constraints=constraints,
                options={"mip_rel_gap": 0.0},
            )
            if done.x is None:
                raise WorkError(f"no solution found: {done.message}")
            found = np.round(done.x)
            constraints.append(LinearConstraint(criterion[None], -np.inf, float(criterion @ found)))
        return found
