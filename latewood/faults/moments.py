"""What stuck cells do to an integer on average, in closed form."""

from __future__ import annotations

from typing import NamedTuple

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from latewood.errors import invalid
from latewood.faults.crossbar import Crossbar
from latewood.faults.encoding import require_codes
from latewood.faults.stuck_at import StuckAt, require_types
from latewood.kernels.faults import digits_of

__all__ = ["Moments", "cell_change", "moments"]

Numbers = NDArray[numpy.float64]


class Moments(NamedTuple):
    """The distribution of what is read of integers.

    Args:
        mean: (E q') float64 of the shape of q.
        variance: (Var q') the same.
        changed: P(q' != q), the same; errors in the two arrays of a pair may cancel.
    """

    mean: Tensor
    variance: Tensor
    changed: Tensor


def moments(q: Tensor, crossbar: Crossbar, faults: StuckAt) -> Moments:
    r"""Mean, variance and probability of change of what is read of integers.

    Per cell of digit d and stuck level h, :math:`E d' = (1 - p_0 - p_1) d + p_1 h` and
    :math:`E d'^2 = (1 - p_0 - p_1) d^2 + p_1 h^2`; cells add up with their weights, and on aligned
    pairs :math:`E q' = (1 - p_0 - p_1) q`. Clusters and exact counts have the cells of a weight
    depend on one another, and lines come on top of cells, so they are refused.

    Args:
        q: int32 of any shape, as ``encode`` gives them; of analog pairs floating.
        crossbar: how they are held.
        faults: of the cells, independent.

    Raises:
        RequestError: integers that the cells do not hold, or clusters, lines and exact counts.
    """
    return Moments(*_distribution(q, crossbar, faults)[:3])


def cell_change(q: Tensor, crossbar: Crossbar, faults: StuckAt) -> Tensor:
    """The probability that the level of some cell of an integer changes, whatever is read then.

    ``1 - prod_cells (1 - p0 [d != 0] - p1 [d != h])``, with h the level of a cell that is stuck in
    the low-resistance state.

    Args:
        q: as for ``moments``.
        crossbar: how they are held.
        faults: of the cells, independent.

    Returns:
        float64 of the shape of q.

    Raises:
        RequestError: as ``moments``.
    """
    return _distribution(q, crossbar, faults)[3]


def _distribution(q: Tensor, crossbar: Crossbar, faults: StuckAt) -> tuple[Tensor, ...]:
    require_types(crossbar, faults)
    if not faults.independent:
        expected = "independent faults: clusters, lines and exact counts have no closed form"
        raise invalid("faults", faults, expected)
    require_codes(q, crossbar)
    unique, places = torch.unique(q, return_inverse=True)
    p0, p1 = faults.hrs, faults.lrs
    if faults.level == "weight":
        parts = _of_weights(_numbers(unique), crossbar.largest, p0, p1)
    elif crossbar.is_analog:
        numbers = _numbers(unique)
        digits = numpy.stack([numbers.clip(min=0), (-numbers).clip(min=0)])
        parts = _of_cells(digits, [1, -1], [1.0, 1.0], [0, 0], 1, p0, p1)
    else:
        cells = crossbar.layout.cells
        parts = _of_cells(
            _numbers(digits_of(unique, crossbar.layout)),
            [cell.sign << cell.shift for cell in cells],
            [cell.stuck for cell in cells],
            [cell.slice for cell in cells],
            crossbar.levels,
            p0,
            p1,
        )
        parts = (parts[0] - crossbar.layout.offset, *parts[1:])
    at = places.to(q.device)
    return tuple(torch.from_numpy(part).to(q.device)[at] for part in parts)


def _of_weights(q: Numbers, largest: int, p0: float, p1: float) -> tuple[Numbers, ...]:
    mean = (1 - p0 - p1) * q
    variance = (1 - p0 - p1) * q**2 + p1 * largest**2 - mean**2
    changed = p0 * (q != 0) + p1 * numpy.where(numpy.abs(q) == largest, 0.5, 1.0)
    return mean, variance, changed, changed


def _of_cells(
    digits: Numbers,
    weights: list[int],
    stuck: list[float],
    slices: list[int],
    levels: int,
    p0: float,
    p1: float,
) -> tuple[Numbers, ...]:
    good = 1 - p0 - p1
    count = digits.shape[1]
    mean, variance, untouched = numpy.zeros(count), numpy.zeros(count), numpy.ones(count)
    for digit, weight, highest in zip(digits, weights, stuck, strict=True):
        level = good * digit + p1 * highest
        mean += weight * level
        variance += weight**2 * (good * digit**2 + p1 * highest**2 - level**2)
        untouched *= 1 - p0 * (digit != 0) - p1 * (digit != highest)
    same = _same_value(digits, weights, stuck, slices, levels, p0, p1)
    return mean, variance, 1 - same, 1 - untouched


def _same_value(
    digits: Numbers,
    weights: list[int],
    stuck: list[float],
    slices: list[int],
    levels: int,
    p0: float,
    p1: float,
) -> Numbers:
    """P(q' = q), slice by slice from the lowest, by what is carried into the next."""
    count = digits.shape[1]
    carries: dict[float, Numbers] = {0.0: numpy.ones(count)}
    for k in range(max(slices) + 1):
        cells = [index for index, at in enumerate(slices) if at == k]
        for index in cells:
            sign = 1 if weights[index] > 0 else -1
            carries = _with_cell(carries, digits[index], sign, stuck[index], p0, p1)
        carries = _carried(carries, levels if k < max(slices) else 0)
    return carries.get(0.0, numpy.zeros(count))


def _with_cell(
    sums: dict[float, Numbers], digit: Numbers, sign: int, stuck: float, p0: float, p1: float
) -> dict[float, Numbers]:
    """The distribution of a sum of differences, by value, with one more cell in it."""
    grown: dict[float, Numbers] = {}
    good = 1 - p0 - p1
    for held in numpy.unique(digit):
        here = digit == held
        for value, chance in sums.items():
            for difference, weight in ((0.0, good), (-held, p0), (stuck - held, p1)):
                total = float(value + sign * difference)
                part = grown.setdefault(total, numpy.zeros(len(digit)))
                part += numpy.where(here, chance * weight, 0.0)
    return grown


def _carried(sums: dict[float, Numbers], levels: int) -> dict[float, Numbers]:
    """What is left of sums that end with the digit 0: the carry; at the end only 0 itself."""
    if levels == 0:
        return {0.0: sums[0.0]} if 0.0 in sums else {}
    return {value / levels: chance for value, chance in sums.items() if value % levels == 0}


def _numbers(tensor: Tensor) -> Numbers:
    return tensor.detach().cpu().numpy().astype(numpy.float64)
