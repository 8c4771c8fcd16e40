"""The entries of one stage in a tensor: their norms, and few rectangles that cover them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Block", "block_norms", "blocks", "runs", "stages_present"]


@dataclass(frozen=True)
class Block:
    """A rectangle of entries that are treated alike.

    Args:
        label: what they have in common.
        index: one slice an axis of the tensor.
    """

    label: int
    index: tuple[slice, ...]


def stages_present(vectors: Mapping[int, Tensor]) -> list[int]:
    """The stages that entries of a tensor have, ascending.

    Args:
        vectors: by axis, the stage of each position.
    """
    least = max((int(born.min()) for born in vectors.values() if len(born)), default=0)
    found = {stage for born in vectors.values() for stage in born.tolist() if stage >= least}
    return sorted(found | {least})


def block_norms(tensor: Tensor, vectors: Mapping[int, Tensor]) -> dict[int, float]:
    r"""Frobenius norm of each stage's entries, from one table of sums of squares.

    .. math:: \|W_{Dk}\|_F, \quad Dk = \{(i, j): \max(s_i, s_j) = k\}

    Args:
        tensor: of any real dtype.
        vectors: by axis, the stage of each position; axes without one are all of one stage.

    Returns:
        The norm by stage.
    """
    present = stages_present(vectors)
    rank = {stage: position for position, stage in enumerate(present)}
    squares = tensor.detach()
    squares = squares.abs() if squares.is_complex() else squares
    if squares.dtype in (torch.float16, torch.bfloat16):
        squares = squares.float()
    squares = squares.square()
    others = [axis for axis in range(squares.ndim) if axis not in vectors]
    table = squares.sum(others) if others else squares
    for dim, axis in enumerate(sorted(vectors)):
        places = [rank.get(stage, 0) for stage in vectors[axis].tolist()]
        shape = [*table.shape[:dim], len(present), *table.shape[dim + 1 :]]
        sums = table.new_zeros(shape, dtype=torch.float64)
        table = sums.index_add_(dim, torch.tensor(places, device=table.device), table.double())
    entries = table.cpu()
    youngest = torch.zeros(entries.shape, dtype=torch.long)
    for dim in range(entries.ndim):
        shape = [len(present) if other == dim else 1 for other in range(entries.ndim)]
        youngest = torch.maximum(youngest, torch.arange(len(present)).view(shape))
    return {
        stage: math.sqrt(float(entries[youngest == position].sum()))
        for position, stage in enumerate(present)
    }


def blocks(
    shape: Sequence[int], vectors: Mapping[int, Tensor], labels: Mapping[int, int]
) -> list[Block]:
    """Rectangles that cover a tensor, each of entries with one label; at most 2 N - 1 where the N
    stages lie in order along two axes.

    Args:
        shape: of the tensor.
        vectors: by axis, the stage of each position.
        labels: of each stage; stages of one label are put together where they touch.

    Returns:
        The rectangles; they do not overlap.
    """
    axes = sorted(vectors)
    along = [runs(vectors[axis].tolist()) for axis in axes]
    grid = {
        cell: labels[max(run[place][0] for run, place in zip(along, cell, strict=True))]
        for cell in itertools.product(*(range(len(run)) for run in along))
    }
    found: list[Block] = []
    while grid:
        start = next(iter(grid))
        label, extent = grid[start], [1] * len(start)
        for dim in reversed(range(len(start))):
            while _all_are(grid, label, start, extent, dim):
                extent[dim] += 1
        for cell in _cells(start, extent):
            del grid[cell]
        index = [slice(0, size) for size in shape]
        for axis, run, first, count in zip(axes, along, start, extent, strict=True):
            index[axis] = slice(run[first][1], run[first + count - 1][2])
        found.append(Block(label, tuple(index)))
    return found


def _all_are(
    grid: Mapping[tuple[int, ...], int],
    label: int,
    start: Sequence[int],
    extent: Sequence[int],
    dim: int,
) -> bool:
    """Whether the next slab of cells along a dimension is free and has the label throughout."""
    first = [*start]
    first[dim] += extent[dim]
    size = [*extent]
    size[dim] = 1
    return all(grid.get(cell) == label for cell in _cells(first, size))


def _cells(start: Sequence[int], extent: Sequence[int]) -> list[tuple[int, ...]]:
    ranges = (range(first, first + count) for first, count in zip(start, extent, strict=True))
    return list(itertools.product(*ranges))


def runs(stages: Sequence[int]) -> list[tuple[int, int, int]]:
    """Stage, first position and the one behind the last, run by run.

    Args:
        stages: of each position.
    """
    found = []
    position = 0
    for stage, members in itertools.groupby(stages):
        count = len(list(members))
        found.append((stage, position, position + count))
        position += count
    return found
