"""From learned bits, which are real numbers, to the few widths of a palette."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

import torch
from torch import Tensor

from latewood.errors import invalid
from latewood.precision.number_format import MOST_BITS
from latewood.precision.water_filling import expected_loss

__all__ = [
    "Palette",
    "candidate_levels",
    "checked_palette",
    "drop_cheapest",
    "nearest_levels",
    "require_reachable",
    "snap_to_average",
    "two_levels",
]

Palette = tuple[int, ...] | Literal["two_levels", "three_levels"]

THREE_LEVELS: Final = (1, 2, 4)
_LOW, _HIGH = range(1, 5), range(4, 9)


def checked_palette(palette: Sequence[int] | str) -> tuple[int, ...] | Literal["two_levels"]:
    """The levels of a palette, ascending; "three_levels" is 1, 2 and 4 bits.

    Args:
        palette: numbers of bits from 0 to 8, at least one of them positive, or a named mode.

    Raises:
        RequestError: anything else.
    """
    if palette == "two_levels":
        return "two_levels"
    if palette == "three_levels":
        return THREE_LEVELS
    allowed = f"different whole numbers from 0 to {MOST_BITS}, 'two_levels' or 'three_levels'"
    if isinstance(palette, str) or not isinstance(palette, Sequence):
        raise invalid("palette", palette, allowed)
    levels: tuple[Any, ...] = tuple(palette)
    fits = all(type(level) is int and 0 <= level <= MOST_BITS for level in levels)
    if not fits or len(set(levels)) != len(levels) or max(levels, default=0) < 1:
        raise invalid("palette", palette, allowed)
    return tuple(sorted(levels))


def candidate_levels(palette: tuple[int, ...] | Literal["two_levels"]) -> tuple[int, ...]:
    """All widths that a palette may end with."""
    return tuple(range(1, MOST_BITS + 1)) if palette == "two_levels" else palette


def require_reachable(target: float, palette: tuple[int, ...] | Literal["two_levels"]) -> None:
    """Refuses an average that no choice of levels has.

    Raises:
        RequestError: it is below the least level or above the largest.
    """
    levels = candidate_levels(palette)
    # The layer that loses all its channels computes nothing, so 0 itself is out of reach.
    least = levels[0] if levels[0] else 0.0
    if not (least <= target <= levels[-1] and target > 0):
        raise invalid(
            "target_bits", target, f"an average from {least:g} to {levels[-1]} of {palette}"
        )


def nearest_levels(bits: Tensor, levels: Sequence[int]) -> Tensor:
    """The level next to each number of bits; half-way it is the upper one.

    Args:
        bits: any shape.
        levels: ascending.

    Returns:
        uint8 of the shape of ``bits``.

    Source: the thresholds are inferred [I]; 1, 2 and 4 bits meet at 1.5 and 3.
    """
    table = torch.tensor(levels, dtype=bits.dtype, device=bits.device)
    places = torch.bucketize(bits.contiguous(), (table[1:] + table[:-1]) / 2, right=True)
    return table[places].to(torch.uint8)


def snap_to_average(bits: Tensor, counts: Tensor, levels: Sequence[int], average: float) -> Tensor:
    """Levels whose average is as near below an asked one as groups allow, by moved thresholds.

    All thresholds move by one number, found by bisection; groups of equal bits that only together
    would be too many are taken in their order.

    Args:
        bits: of the groups, shape (groups,).
        counts: weights of each group, shape (groups,).
        levels: ascending; the average lies within them.
        average: bits over all weights.

    Returns:
        uint8, shape (groups,).
    """
    wide, weights = bits.double(), counts.double()
    budget = average * float(weights.sum()) + 1e-9
    low, high = -float(MOST_BITS) - 1, float(MOST_BITS) + 1
    for _ in range(60):
        middle = (low + high) / 2
        chosen = nearest_levels(wide + middle, levels).double()
        if float((chosen * weights).sum()) <= budget:
            low = middle
        else:
            high = middle
    chosen = nearest_levels(wide + low, levels).double()
    above = nearest_levels(wide + high, levels).double()
    # What crosses its threshold between the two, dearest bits first.
    order = torch.argsort(wide, descending=True, stable=True)
    cost = ((above - chosen) * weights)[order].cumsum(0)
    taken = order[cost <= budget - float((chosen * weights).sum())]
    chosen[taken] = above[taken]
    return chosen.to(torch.uint8)


def two_levels(
    bits: Tensor, counts: Tensor, curvature: Tensor, *, price: float, average: float | None
) -> tuple[int, int]:
    """The pair of widths, one of 1 to 4 bits and one of 4 to 8, that serves a network best.

    Of all pairs the one with the least ``expected_loss`` plus the price of its bits.

    Args:
        bits: learned, shape (groups,).
        counts: weights of each group.
        curvature: (h) of a weight of each group.
        price: (lambda) of a bit of one weight.
        average: the pair must be able to have it; None snaps to the nearer level of each pair.

    Source: SONIQ (arXiv 2311.14114v3 and v4) states that two levels suffice, one of 1 to 4 bits and
    one of 4 to 8 [P]; how the pair is found is ours [I].
    """
    scores = {}
    for low in _LOW:
        for high in _HIGH:
            levels = (low, high) if low < high else (low,)
            if average is None:
                # As the thresholds of a palette, but never more than half a bit below.
                chosen = torch.where(bits.double() <= low + 0.5, low, high)
            elif low <= average <= high:
                chosen = snap_to_average(bits, counts, levels, average)
            else:
                continue
            spent = float((chosen.double() * counts.double()).sum())
            scores[low, high] = expected_loss(curvature, counts, chosen) + price * spent
    return min(scores, key=lambda pair: scores[pair])


def drop_cheapest(
    levels: Tensor, counts: Tensor, curvature: Tensor, squares: Tensor, *, price: float
) -> Tensor:
    r"""Which groups of the least bits are not even worth these.

    Without its weights a group costs :math:`n h \langle w^2 \rangle / 2`, with p bits
    :math:`n (h \sigma^2 / 6 + \lambda p)`.

    Args:
        levels: bits of the groups, shape (groups,).
        counts: (n) weights of each group.
        curvature: (h) of a weight of each group.
        squares: mean square of the weights of each group, on the grid's scale.
        price: (lambda) of a bit of one weight.

    Returns:
        bool, shape (groups,).

    Source: ours [I].
    """
    wide = levels.double()
    kept = curvature.double() * torch.exp2(2 - 2 * wide) / 6 + price * wide
    gone = curvature.double() * squares.double() / 2
    return (gone < kept) & (levels == levels.min()) & (counts > 0)
