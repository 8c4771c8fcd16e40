"""Labels in as little memory as they need: what is alike along a dimension is stored once there."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["compact", "compact_together", "joined", "repeated", "reshaped"]


def compact(labels: Tensor) -> Tensor:
    """Labels with size 1 in the dimensions along which an expansion repeats them."""
    shape, strides = labels.shape, labels.stride()
    if 0 not in strides:
        return labels
    narrow = [
        1 if not stride and size else size for size, stride in zip(shape, strides, strict=True)
    ]
    return labels.as_strided(narrow, strides)


def compact_together(*labels: Tensor) -> list[Tensor]:
    """Labels of one shape without the repetitions that all of them have in common."""
    shape, strides = labels[0].shape, [tensor.stride() for tensor in labels]
    narrow = [
        1 if size and not any(along) else size
        for size, along in zip(shape, zip(*strides, strict=True), strict=True)
    ]
    if narrow == list(shape):
        return list(labels)
    return [
        tensor.as_strided(narrow, stride) for tensor, stride in zip(labels, strides, strict=True)
    ]


def reshaped(labels: Tensor, shape: Sequence[int]) -> Tensor:
    """Labels in another shape, still repeated along the dimensions along which they were.

    Dimensions are taken in the smallest sets that hold the same elements before and after.

    Args:
        labels: of any strides.
        shape: as many elements.
    """
    few = compact(labels)
    if labels.numel() == 0:
        return labels.reshape(shape)
    wide: list[int] = []
    narrow: list[int] = []
    for old, new in _sets(labels.shape, shape):
        constant = all(few.shape[dim] == 1 for dim in old)
        wide += [1 if constant else labels.shape[dim] for dim in old]
        narrow += [1 if constant else shape[dim] for dim in new]
    return few.expand(wide).reshape(narrow).expand(*shape)


def _sets(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    sets: list[tuple[list[int], list[int]]] = []
    old, new = 0, 0
    while old < len(before) or new < len(after):
        olds, news = [], []
        left = right = 1
        if old < len(before):
            olds, left, old = [old], before[old], old + 1
        if new < len(after):
            news, right, new = [new], after[new], new + 1
        while left != right:
            if left < right:
                olds.append(old)
                left, old = left * before[old], old + 1
            else:
                news.append(new)
                right, new = right * after[new], new + 1
        sets.append((olds, news))
    return sets


def joined(pieces: Sequence[Tensor], dim: int) -> Tensor:
    """Labels of a concatenation."""
    dim %= pieces[0].ndim
    shape = list(pieces[0].shape)
    shape[dim] = sum(piece.shape[dim] for piece in pieces)
    few = [piece.movedim(dim, 0) for piece in pieces]
    for other in range(1, few[0].ndim):
        if few[0].shape[other] > 1 and all(piece.stride(other) == 0 for piece in few):
            few = [piece.narrow(other, 0, 1) for piece in few]
    return torch.cat(few).movedim(0, dim).expand(*shape)


def repeated(labels: Tensor, repeats: Sequence[int]) -> Tensor:
    """Labels of a tensor that was tiled."""
    labels = labels.expand(*[1] * (len(repeats) - labels.ndim), *labels.shape)
    few = compact(labels)
    tiles = [count if size > 1 else 1 for count, size in zip(repeats, few.shape, strict=True)]
    shape = [count * size for count, size in zip(repeats, labels.shape, strict=True)]
    return few.repeat(tiles).expand(*shape) if math.prod(shape) else labels.repeat(*repeats)
