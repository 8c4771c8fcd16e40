"""One state of a training, continued several times."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import TypeVar

import torch

__all__ = ["branch"]

Start = TypeVar("Start")
End = TypeVar("End")


def branch(
    start: Start, train: Callable[[Start, int], End], *, seeds: Iterable[int]
) -> dict[int, End]:
    """Continues a training from one point, once per seed, each time from the same state.

    Every branch gets a copy of all of ``start``, in which an optimizer still works on its model's
    parameters, and torch's generators as they are now. So whatever differs between two branches
    comes from what ``train`` does with the seed, usually to order the data.

    Args:
        start: what the training goes on with, such as (model, optimizer, schedule); left as it is.
        train: ``train(copy of start, seed)``: trains to the end and returns what is wanted of it.
        seeds: one branch each.

    Returns:
        What ``train`` returned, by seed; torch's generators are left as they were.

    Source: arXiv 2408.11804, section 5.1.
    """
    ends: dict[int, End] = {}
    for seed in seeds:
        with torch.random.fork_rng():
            ends[seed] = train(copy.deepcopy(start), seed)
    return ends
