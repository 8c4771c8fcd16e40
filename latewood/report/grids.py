"""Scalars of many layers on the steps that any of them has."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from latewood.report.run_data import Series

__all__ = ["grid"]

Array = NDArray[np.float64]


def grid(series: Sequence[Series]) -> tuple[Array, Array]:
    """One row per series, NaN where it has no value.

    Args:
        series: any number of them.

    Returns:
        steps (n,) ascending, and values (series, n).
    """
    steps = np.unique(np.concatenate([np.zeros(0), *(one.steps for one in series)]))
    values = np.full((len(series), len(steps)), np.nan)
    for row, one in zip(values, series, strict=True):
        row[np.searchsorted(steps, one.steps)] = one.values
    return steps, values
