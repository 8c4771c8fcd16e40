"""Pareto sets of three costs."""

from __future__ import annotations

import bisect

import numpy as np
from numpy.typing import NDArray

__all__ = ["pareto_front"]


def pareto_front(costs: NDArray[np.floating]) -> NDArray[np.int64]:
    """Points that no other point is at least as good as in all three costs.

    Args:
        costs: (n, 3), the less the better. Of equal points the first counts.

    Returns:
        Places of the points, by the first cost, then the second, then the third.
    """
    unique, first = np.unique(costs, axis=0, return_index=True)
    # By the first cost, what came before can only be beaten in the other two: a staircase of them,
    # the second cost rising, the third falling.
    seconds: list[float] = []
    thirds: list[float] = []
    front = []
    for place, (_, second, third) in enumerate(unique.tolist()):
        before = bisect.bisect_right(seconds, second)
        if before and thirds[before - 1] <= third:
            continue
        front.append(place)
        # Steps that this one makes needless follow it.
        start = bisect.bisect_left(seconds, second)
        end = start
        while end < len(thirds) and thirds[end] >= third:
            end += 1
        seconds[start:end] = [second]
        thirds[start:end] = [third]
    return np.asarray(first[front], dtype=np.int64)
