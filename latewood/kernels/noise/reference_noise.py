"""Uniform noise from a counter, and clipped values with it, in plain torch: the oracle."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

__all__ = ["clipped", "extent_reference", "noise_reference", "philox"]

_GROUP: Final = 128
"""Places that one group of 16 counters serves: 4 words of each, 2 numbers a word."""
_COUNTERS: Final = 16
_AT_ONCE: Final = 1 << 15
"""Counters at a time on the CPU, so that the passes over them stay in the cache."""
_WORD: Final = 0xFFFFFFFF
_FACTORS: Final = (0xD2511F53, 0xCD9E8D57)
_WEYL: Final = (0x9E3779B9, 0xBB67AE85)


def philox(
    counters: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int | Tensor, int | Tensor]
) -> list[Tensor]:
    """The random function Philox 4x32-10: four words of 32 bits from four and two.

    Args:
        counters: int64 of 32 bits each, broadcast against one another.
        key: 32 bits each, numbers or 0-dim tensors.

    Returns:
        Four tensors of int64, 32 bits each.

    Source: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", 2011.
    """
    c0, c1, c2, c3 = counters
    k0, k1 = key
    for _ in range(10):
        # Products wrap to 64 bits; words that only go into the next round keep what is above 32.
        first, second = c0 * _FACTORS[0], c2 * _FACTORS[1]
        c0 = ((second >> 32) ^ (c1 ^ k0)) & _WORD
        c2 = ((first >> 32) ^ (c3 ^ k1)) & _WORD
        c1, c3 = second, first
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return [c0, c1 & _WORD, c2, c3 & _WORD]


def noise_reference(count: int, key: int | Tensor, device: torch.device) -> Tensor:
    """``uniform_noise`` of so many places in plain torch, on any device.

    Args:
        count: places.
        key: 64 bits, signed; a 0-dim tensor keeps another device from being waited for.
        device: of the result.

    Returns:
        (count,) float32.
    """
    noise = torch.empty(count, dtype=torch.float32, device=device)
    groups = -(-count // _GROUP)
    step = _AT_ONCE // _COUNTERS if device.type == "cpu" else max(groups, 1)
    zero = torch.zeros((), dtype=torch.int64, device=device)
    for group in range(0, groups, step):
        ends = (group * _COUNTERS, min(group + step, groups) * _COUNTERS)
        counters = torch.arange(*ends, dtype=torch.int64, device=device)
        words = philox(
            (counters & _WORD, counters >> 32, zero, zero), (key & _WORD, key >> 32 & _WORD)
        )
        # (word, group, counter) becomes (group, word, counter, half), the low half first.
        stacked = torch.stack(words).view(4, -1, _COUNTERS).transpose(0, 1)
        halves = torch.stack((stacked & 0xFFFF, stacked >> 16), -1).flatten()
        signed = halves.to(torch.int16)
        part = noise[group * _GROUP : (group + step) * _GROUP]
        torch.mul(signed[: len(part)], 2.0**-15, out=part).add_(2.0**-16)
    return noise


def clipped(values: Tensor, width: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Values that noise of a width keeps between bounds; the gradient goes to what is returned."""
    least, largest = low.detach() + width, high.detach() - width
    return torch.where(values < least, least, torch.where(values > largest, largest, values))


def extent_reference(values: Tensor) -> Tensor:
    """``extent`` in plain torch: the oracle, on any device and in any float dtype."""
    wide = values.to(torch.promote_types(values.dtype, torch.float32))
    return torch.stack([wide.square().mean(), *wide.aminmax()])
