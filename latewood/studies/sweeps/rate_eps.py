"""Recognises a sweep over learning rate and eps, and reads the study of it from its table."""

from __future__ import annotations

import math
from collections.abc import Sequence

from latewood.optim import RateStudy, rate_study
from latewood.terminal.tables import Row

__all__ = ["EPS", "RATE", "rate_eps_study"]

RATE, EPS = "optimizer.lr", "optimizer.eps"


def rate_eps_study(
    rows: Sequence[Row], keys: Sequence[str], headline: str, *, higher_is_better: bool
) -> RateStudy | None:
    """The study of a sweep whose two keys are the optimizer's learning rate and eps; else None.

    Args:
        rows: the sweep's table; points that are missing, failed or diverged have no best rate.
        keys: the columns that were swept.
        headline: the column with the results.
        higher_is_better: whether large results are good ones.
    """
    if sorted(keys) != sorted((RATE, EPS)):
        return None
    qualities: dict[tuple[float, float], float] = {}
    for row in rows:
        eps, rate, result = (_number(row.get(name)) for name in (EPS, RATE, headline))
        if not (0.0 < eps < math.inf and 0.0 < rate < math.inf):
            return None
        qualities.setdefault((eps, rate), result)
    all_eps, rates = (sorted({point[k] for point in qualities}) for k in (0, 1))
    values = [[qualities.get((eps, rate), math.nan) for rate in rates] for eps in all_eps]
    return rate_study(all_eps, rates, values, higher_is_better=higher_is_better)


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
