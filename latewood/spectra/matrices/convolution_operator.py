"""The exact singular values of a convolution as a linear map between images, not of its kernel."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from latewood.errors import invalid

__all__ = ["convolution_values"]


def convolution_values(
    weight: Tensor,
    size: Sequence[int],
    *,
    stride: Sequence[int] | int = 1,
    dilation: Sequence[int] | int = 1,
    groups: int = 1,
) -> Tensor:
    r"""All singular values of a convolution on a periodic grid.

    The Fourier transform takes the operator apart into one small matrix per frequency. A stride s
    folds s frequencies per axis onto one:

    .. math:: \hat{A}(f) = s^{-d/2} [\hat{K}(f), \hat{K}(f + N/s), \dots]

    Args:
        weight: (out, in / groups, *kernel), real.
        size: the grid N, one side per axis of the kernel, each a multiple of its stride.
        stride: per axis, or one for all.
        dilation: per axis, or one for all.
        groups: number of groups.

    Returns:
        (frequencies * groups * min(out, in * strides) / groups,) float64, descending.

    Raises:
        RequestError: sizes that do not fit each other.

    Source: Sedghi, Gupta, Long (2019), for stride 1.
    """
    axes = weight.ndim - 2
    if axes < 1 or weight.is_complex():
        raise invalid("weight", tuple(weight.shape), "a real tensor (out, in / groups, *kernel)")
    sides, strides = _per_axis("size", size, axes), _per_axis("stride", stride, axes)
    dilations = _per_axis("dilation", dilation, axes)
    if any(side % step for side, step in zip(sides, strides, strict=True)):
        raise invalid("size", sides, f"multiples of the stride {strides}")
    if groups < 1 or weight.shape[0] % groups:
        raise invalid("groups", groups, f"a divisor of {weight.shape[0]}")
    grid = _on_grid(weight.detach().double(), sides, dilations)
    blocks = _folded(torch.fft.fftn(grid, dim=tuple(range(-axes, 0))), strides)
    out, inputs = weight.shape[0] // groups, blocks.shape[-1]
    per_group = blocks.unflatten(-2, (groups, out)).reshape(-1, out, inputs)
    values: Tensor = torch.linalg.svdvals(per_group).flatten().sort(descending=True).values
    return values


def _on_grid(weight: Tensor, sides: tuple[int, ...], dilations: tuple[int, ...]) -> Tensor:
    """The kernel laid out on the grid, taps that meet again on a small one added up."""
    grid = weight.new_zeros(*weight.shape[:2], *sides)
    for tap in itertools.product(*(range(length) for length in weight.shape[2:])):
        place = [t * d % n for t, d, n in zip(tap, dilations, sides, strict=True)]
        cell, value = grid, weight
        for position, index in zip(place, tap, strict=True):
            cell, value = cell[:, :, position], value[:, :, index]
        cell += value
    return grid


def _folded(transformed: Tensor, strides: tuple[int, ...]) -> Tensor:
    """(frequencies, out, in * strides): what meets in each frequency of the output."""
    out, inputs, *sides = transformed.shape
    split: list[int] = []
    for side, step in zip(sides, strides, strict=True):
        split += [step, side // step]
    axes = len(sides)
    folds, frequencies = ([2 + 2 * axis + which for axis in range(axes)] for which in (0, 1))
    blocks = transformed.reshape(out, inputs, *split).permute(*frequencies, 0, 1, *folds)
    folded: Tensor = blocks.reshape(-1, out, inputs * math.prod(strides))
    return folded.div(math.prod(strides) ** 0.5)


def _per_axis(name: str, value: Sequence[int] | int, axes: int) -> tuple[int, ...]:
    values = (value,) * axes if isinstance(value, int) else tuple(value)
    if len(values) != axes or any(not isinstance(v, int) or v < 1 for v in values):
        raise invalid(name, value, f"{axes} integers of at least 1")
    return values
