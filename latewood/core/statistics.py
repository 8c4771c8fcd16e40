"""How far a mean over a few seeds can be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy.special import stdtrit

from latewood.errors import invalid

__all__ = ["half_width", "mean"]


def mean(values: Sequence[float]) -> float:
    """The mean of one value or more, summed exactly.

    Raises:
        RequestError: no values.
    """
    if not values:
        raise invalid("values", [], "one value or more")
    return math.fsum(values) / len(values)


def half_width(values: Sequence[float], *, confidence: float = 0.95) -> float:
    """Half-width of the mean's confidence interval, ``t_{n-1} * std / sqrt(n)`` (Student's t).

    Args:
        values: one per seed.
        confidence: of the interval, in (0, 1).

    Returns:
        The half-width; nan for fewer than two values.

    Raises:
        RequestError: a confidence out of range.
    """
    if not 0.0 < confidence < 1.0:
        raise invalid("confidence", confidence, "a number in (0, 1)")
    n = len(values)
    if n < 2:
        return math.nan
    centre = mean(values)
    variance = math.fsum((value - centre) ** 2 for value in values) / (n - 1)
    return float(stdtrit(n - 1, 0.5 + confidence / 2)) * math.sqrt(variance / n)
