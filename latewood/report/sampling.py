"""Fewer points that draw the same picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "DETAILS",
    "Detail",
    "bucket_means",
    "evenly",
    "keep_extremes",
    "leading_and_even",
    "short",
]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Detail:
    """How much of a run a report shows.

    Args:
        points: points of one curve.
        snapshots: moments of one heat map or of one panel of singular values.
        ranks: singular values of one panel.
        layers: panels of one run.
        runs: runs whose spectra are drawn.
    """

    points: int
    snapshots: int
    ranks: int
    layers: int
    runs: int


DETAILS = (
    Detail(points=600, snapshots=64, ranks=24, layers=96, runs=6),
    Detail(points=300, snapshots=40, ranks=16, layers=64, runs=4),
    Detail(points=120, snapshots=24, ranks=10, layers=40, runs=2),
    Detail(points=40, snapshots=12, ranks=6, layers=24, runs=1),
)
"""From fine to coarse; a report takes the first that keeps the page under its size."""


def evenly(count: int, most: int) -> list[int]:
    """At most ``most`` (2 or more) of the positions 0 to ``count`` - 1, with the first and last."""
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]


def leading_and_even(count: int, most: int) -> list[int]:
    """Like ``evenly``, but a quarter of the positions are the very first ones."""
    if count <= most:
        return list(range(count))
    leading = max(1, most // 4)
    rest = [leading + i for i in evenly(count - leading, most - leading)]
    return [*range(leading), *rest]


def keep_extremes(x: ArrayLike, y: ArrayLike, most: int) -> tuple[Array, Array]:
    """A curve with at most ``most`` points that keeps its ends and the peaks and dips between them.

    Args:
        x: (n,) ascending.
        y: (n,); NaN is kept as a gap.
        most: 4 or more.

    Returns:
        Both coordinates, (at most ``most``,) each.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if len(x) <= most:
        return x, y
    edges = np.linspace(1, len(x) - 1, (most - 2) // 2 + 1).astype(int)
    chosen = {0, len(x) - 1}
    for start, stop in pairwise(edges):
        piece = y[start:stop]
        if len(piece) and not np.isnan(piece).all():
            chosen |= {start + int(np.nanargmin(piece)), start + int(np.nanargmax(piece))}
        elif len(piece):
            chosen.add(int(start))
    order = sorted(chosen)
    return x[order], y[order]


def bucket_means(x: ArrayLike, y: ArrayLike, most: int) -> tuple[Array, Array]:
    """The means of at most ``most`` stretches of a curve: its trend without its noise.

    Args:
        x: (n,) ascending.
        y: (n,); NaN does not count, and a stretch of NaN alone is a gap.
        most: number of stretches.

    Returns:
        Both coordinates, (at most ``most``,) each.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if len(x) <= most:
        return x, y
    edges = np.linspace(0, len(x), most + 1).astype(int)[:-1]
    counts = np.add.reduceat(~np.isnan(y), edges)
    sums = np.add.reduceat(np.nan_to_num(y, nan=0.0, posinf=np.inf, neginf=-np.inf), edges)
    means = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    lengths = np.diff([*edges, len(x)])
    return np.add.reduceat(x, edges) / lengths, means


def short(values: Sequence[float] | Array, digits: int = 4) -> list[float | None]:
    """Numbers with few significant digits, as JSON can hold them: None for NaN and Inf."""
    return [float(f"{value:.{digits}g}") if math.isfinite(value) else None for value in values]
