"""Rounding to bfloat16 up or down at random, so that small steps survive on average."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

__all__ = ["noise_key", "round_with_noise"]

_Bits = TypeVar("_Bits", int, Tensor)
_WORD = 0xFFFFFFFF


def noise_key(seed: int, step: float | Tensor, position: int) -> int | Tensor:
    """The key of the noise for one parameter in one step.

    Args:
        seed: from 0, below 2^32.
        step: t, counted from 1.
        position: of the parameter among those of the step.

    Returns:
        32 bits; a 0-dim int64 tensor where the step is a tensor.
    """
    count = step.long() if isinstance(step, Tensor) else int(step)
    if isinstance(count, Tensor):
        return _mixed(_mixed(count ^ _mixed(seed)) ^ position)
    return _mixed(_mixed(count ^ _mixed(seed)) ^ position)


def round_with_noise(values: Tensor, key: int | Tensor) -> Tensor:
    r"""Values of bfloat16, each one of the two neighbours of what it was, right on average.

    .. math:: P(\text{away from } 0) = \frac{|x| - \lfloor |x| \rfloor}{\mathrm{ulp}(x)}

    Element k in memory gets the noise of (key, k), so that every form of a step draws the same.

    Args:
        values: float32, any shape.
        key: of `noise_key`.

    Returns:
        float32 that bfloat16 holds exactly; infinities and NaNs as they were.

    Source: the mixing function is C. Wellons' two-round 32-bit hash.
    """
    index = torch.arange(values.numel(), device=values.device)
    dense = values.numel() < 2 or torch.ops.aten.is_non_overlapping_and_dense.default(values)
    index = index.as_strided(values.shape, values.stride()) if dense else index.view(values.shape)
    noise = (_mixed(index & _WORD ^ key) & 0xFFFF).int()
    rounded = ((values.view(torch.int32) + noise) & -0x10000).view(torch.float32)
    return torch.where(values.isnan(), values, rounded)


def _mixed(bits: _Bits) -> _Bits:
    # Both factors are below 2^31, so that the products fit 64 bits.
    bits = (bits ^ (bits >> 16)) * 0x21F0AAAD & _WORD
    bits = (bits ^ (bits >> 15)) * 0x735A2D97 & _WORD
    return bits ^ (bits >> 15)
