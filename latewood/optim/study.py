"""The learning-rate x adaptability study: how the best learning rate moves with eps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

from latewood.errors import invalid

__all__ = ["RateStudy", "best_rates", "coupling_slope", "rate_study", "spread"]

Matrix = Sequence[Sequence[float]]


@dataclass(frozen=True)
class RateStudy:
    """What a matrix of results says about learning rate and eps.

    Args:
        eps: the rows, ascending.
        rates: the columns, ascending.
        best: best learning rate of each row; nan where no run of the row came to a result.
        slope: slope of log best rate against log eps over the rows from ``floor`` on; 1 is Adam's
            coupling, 0 is none. nan with fewer than two such rows.
        spread: largest best rate over smallest.
        floor: the eps from which the slope counts.
    """

    eps: tuple[float, ...]
    rates: tuple[float, ...]
    best: tuple[float, ...]
    slope: float
    spread: float
    floor: float

    @property
    def separable(self) -> bool:
        """Whether two searches along one axis each find what the whole matrix would."""
        return self.spread <= 10.0 * (1.0 + 1e-9)

    def lines(self) -> list[str]:
        """The study in words: coupling, spread, and how to search."""
        advice = (
            "the best rate hardly moves with eps: search rates at any eps, then eps at that rate"
            if self.separable
            else "the best rate moves with eps: search both together"
        )
        slope = "unknown (too few rows)" if math.isnan(self.slope) else f"{self.slope:.2f}"
        pairs = zip(self.eps, self.best, strict=True)
        return [
            *(f"eps {e:g}: best learning rate {b:g}" for e, b in pairs),
            f"coupling slope for eps of at least {self.floor:g}: {slope}",
            f"spread of the best rates: {self.spread:.3g}x",
            advice,
        ]


def rate_study(
    eps: Sequence[float],
    rates: Sequence[float],
    values: Matrix,
    *,
    higher_is_better: bool,
    floor: float = 0.1,
    tolerance: float = 0.0,
) -> RateStudy:
    """Reads a matrix of results over eps and learning rate.

    Args:
        eps: one for each row, above 0, in any order.
        rates: one for each column, above 0, in any order.
        values: the results (len(eps), len(rates)); nan for a run without one.
        higher_is_better: whether large results are good ones.
        floor: the eps from which the slope counts: where eps exceeds typical gradients.
        tolerance: results this close to their row's best count as equal to it.

    Raises:
        RequestError: if shapes or signs are wrong.

    Source: the study of arXiv 1912.01823; slope and spread are this package's measures.
    """
    _check(eps, rates, values)
    rows = sorted(range(len(eps)), key=lambda k: eps[k])
    columns = sorted(range(len(rates)), key=lambda k: rates[k])
    ordered = [[values[row][column] for column in columns] for row in rows]
    sorted_eps, sorted_rates = [eps[row] for row in rows], [rates[column] for column in columns]
    best = best_rates(sorted_rates, ordered, higher_is_better=higher_is_better, tolerance=tolerance)
    return RateStudy(
        tuple(sorted_eps),
        tuple(sorted_rates),
        tuple(best),
        coupling_slope(sorted_eps, best, floor=floor),
        spread(best),
        floor,
    )


def best_rates(
    rates: Sequence[float], values: Matrix, *, higher_is_better: bool, tolerance: float = 0.0
) -> list[float]:
    """The learning rate with the best result in each row; the smallest of those that tie.

    Args:
        rates: one for each column, ascending.
        values: the results (rows, len(rates)); nan for a run without one.
        higher_is_better: whether large results are good ones.
        tolerance: results this close to the best count as equal to it.

    Returns:
        One rate a row; nan where a row has no result.
    """
    sign = -1.0 if higher_is_better else 1.0
    best = []
    for row in values:
        losses = [sign * value if math.isfinite(value) else math.inf for value in row]
        least = min(losses)
        ties = [rate for rate, loss in zip(rates, losses, strict=True) if loss <= least + tolerance]
        best.append(min(ties) if math.isfinite(least) else math.nan)
    return best


def coupling_slope(eps: Sequence[float], best: Sequence[float], *, floor: float = 0.1) -> float:
    r"""Least-squares slope of log best rate against log eps.

    .. math:: \kappa = \frac{\mathrm{d} \log \alpha^*(\epsilon)}{\mathrm{d} \log \epsilon}

    Args:
        eps: of each row.
        best: best rate of each row; nan rows do not count.
        floor: rows with a smaller eps do not count.

    Returns:
        kappa, or nan with fewer than two different eps left.
    """
    # A decade written as 0.1 or as 1e-1 has to count alike, whatever the last bit of its log.
    pairs = [
        (math.log(e), math.log(b))
        for e, b in zip(eps, best, strict=True)
        if e >= floor * (1.0 - 1e-9) and math.isfinite(b)
    ]
    if len({x for x, _ in pairs}) < 2:
        return math.nan
    mean_x, mean_y = (math.fsum(values) / len(pairs) for values in zip(*pairs, strict=True))
    above = math.fsum((x - mean_x) * (y - mean_y) for x, y in pairs)
    return above / math.fsum((x - mean_x) ** 2 for x, _ in pairs)


def spread(best: Sequence[float]) -> float:
    """Largest best rate over smallest; nan rows do not count, and 1 where none is left."""
    known = [rate for rate in best if math.isfinite(rate)]
    return max(known) / min(known) if known else 1.0


def _check(eps: Sequence[float], rates: Sequence[float], values: Matrix) -> None:
    for name, axis in (("eps", eps), ("rates", rates)):
        numbers = all(isinstance(value, Real) for value in axis)
        if not axis or not numbers or not all(0.0 < value < math.inf for value in axis):
            raise invalid(name, list(axis), "one number or more, all above 0")
    if len(values) != len(eps) or any(len(row) != len(rates) for row in values):
        shape = [len(row) for row in values]
        raise invalid("values", shape, f"{len(eps)} rows of {len(rates)} results")
