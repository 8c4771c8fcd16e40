"""Where codes change: the sums and the numbers from which on a layer's input has a higher code."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["encoded", "number_cuts", "sum_thresholds"]


def encoded(numbers: Tensor, alpha: float, offset: float, bits: Tensor) -> Tensor:
    """The codes of numbers as packed layers form them (``Encoder``), without a look for NaN.

    Args:
        numbers: float32, with channels at axis 1.
        alpha: scale of the inputs.
        offset: 2 for inputs that are never negative, else 0.
        bits: uint8, (channels,), 0 for channels whose code is 0.

    Returns:
        uint8, of the shape of ``numbers``.
    """
    shape = (-1, *(1,) * (numbers.dim() - 2))
    levels = torch.exp2(bits.float()).reshape(shape)
    normal = numbers / torch.tensor(alpha, dtype=torch.float32) - offset
    cells = torch.floor(normal * (levels / 4)) + levels / 2
    cells = torch.minimum(cells, levels - 1).clamp_min(0)
    return torch.where(bits.reshape(shape) > 0, cells, 0.0).to(torch.uint8)


def sum_thresholds(
    numbers: Callable[[Tensor], Tensor],
    rising: Tensor,
    largest: int,
    alpha: float,
    offset: float,
    bits: Tensor,
) -> tuple[Tensor, Tensor]:
    """The sums at which the codes of a layer's outputs change, for every sum in range.

    All roundings between a sum and its code are monotone, so that a search by halves over the
    formula itself finds the borders exactly.

    Args:
        numbers: the number of each sum, (sums, channels) int64 to float32, monotone by channel.
        rising: bool, (channels,): whether larger sums give numbers that are not smaller.
        largest: sums lie between the negative of it and it.
        alpha: of the reader's inputs.
        offset: likewise.
        bits: uint8, (channels,), at most 4.

    Returns:
        int32 thresholds (channels, 2^most - 1) and signs (channels,), as in ``Encoder``; a border
        that no sum reaches is at ``largest + 1``.
    """
    most = int(bits.max()) if bits.numel() else 0
    count = (1 << most) - 1
    signs = torch.where(rising, 1, -1)
    levels = torch.arange(1, count + 1).reshape(-1, 1)
    low = torch.full((count, len(bits)), -largest)
    high = torch.full((count, len(bits)), largest + 1)
    while bool((low < high).any()):
        middle = torch.div(low + high, 2, rounding_mode="floor")
        reached = encoded(numbers(middle * signs), alpha, offset, bits).long() >= levels
        low, high = _halved(low, high, middle, reached)
    return low.t().to(torch.int32).contiguous(), signs.to(torch.int32)


def number_cuts(alpha: float, offset: float, bits: int) -> Tensor:
    """The least float32 number of each code from 1 on.

    Args:
        alpha: of the inputs.
        offset: likewise.
        bits: 1 to 8.

    Returns:
        float32, (2^bits - 1,), ascending; infinity, or NaN as a border that nothing reaches.
    """
    levels = torch.arange(1, 1 << bits)
    width = torch.tensor([bits], dtype=torch.uint8)
    # Numbers in the order of integers: -infinity to infinity.
    low = torch.full(levels.shape, -0x7F800000, dtype=torch.int64)
    high = torch.full(levels.shape, 0x7F800001, dtype=torch.int64)
    while bool((low < high).any()):
        middle = torch.div(low + high, 2, rounding_mode="floor")
        codes = encoded(_ordered(middle).reshape(-1, 1), alpha, offset, width).flatten()
        low, high = _halved(low, high, middle, codes.long() >= levels)
    return _ordered(low)


def _halved(low: Tensor, high: Tensor, middle: Tensor, reached: Tensor) -> tuple[Tensor, Tensor]:
    found = low == high
    above = torch.where(reached | found, low, middle + 1)
    return above, torch.where(reached & ~found, middle, high)


def _ordered(places: Tensor) -> Tensor:
    """The float32 number at each place from that of 0, in ascending order."""
    bits = torch.where(places < 0, -places - 0x80000000, places)
    return bits.to(torch.int32).view(torch.float32)
