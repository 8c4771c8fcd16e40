"""Uniform noise as a function of seed, step, name and place: no generator, nothing to store."""

from __future__ import annotations

import hashlib
from typing import Final

import torch
from torch import Tensor

__all__ = ["noise_key", "uniform_noise"]

_BLOCK: Final = 16384
"""Entries at a time, so that the passes over them stay in the cache."""
_FIRST: Final = 0x7FEB352D
_SECOND: Final = 0x846CA68B - 2**32


def noise_key(seed: int, step: int, name: str, *, device: torch.device | None = None) -> Tensor:
    """The key of the noise of one tensor at one step.

    Args:
        seed: of the run, the same on all processes.
        step: updates so far.
        name: of the tensor.
        device: of the result.

    Returns:
        0-dim int64.
    """
    digest = hashlib.blake2b(f"{seed}/{step}/{name}".encode(), digest_size=8).digest()
    return torch.tensor(int.from_bytes(digest, "little", signed=True), device=device)


def uniform_noise(like: Tensor, key: Tensor) -> Tensor:
    """Numbers from [-1, 1], uniform and independent, that depend on the key and the place alone.

    So a pass that is computed again, as gradient checkpoints do, meets the same noise, and so do
    all processes of a run.

    Args:
        like: gives shape and device.
        key: of ``noise_key``, on the same device.

    Returns:
        float32 of the shape of ``like``, contiguous.

    Source: the mixing steps are those of a published 32-bit hash ("lowbias32", C. Wellons); a step
    of training needs no more than that.
    """
    noise: Tensor = torch.ops.latewood.uniform_noise(like.detach(), key)
    return noise


@torch.library.custom_op("latewood::uniform_noise", mutates_args=())
def _uniform_noise(like: Tensor, key: Tensor) -> Tensor:
    count = like.numel()
    noise = torch.empty(like.shape, dtype=torch.float32, device=like.device)
    flat = noise.view(-1)
    first, second = key.to(torch.int32), (key >> 32).to(torch.int32)
    block = _BLOCK if like.device.type == "cpu" else max(count, 1)
    places = torch.arange(min(block, count), dtype=torch.int32, device=like.device)
    for start in range(0, count, block):
        part = flat[start : start + block]
        # Logical shifts are arithmetic ones with the copies of the sign masked off.
        mixed = places[: len(part)] + (first + start)
        mixed.bitwise_xor_((mixed >> 16).bitwise_and_(0xFFFF)).mul_(_FIRST)
        mixed.bitwise_xor_((mixed >> 15).bitwise_and_(0x1FFFF)).bitwise_xor_(second).mul_(_SECOND)
        mixed.bitwise_xor_((mixed >> 16).bitwise_and_(0xFFFF))
        torch.mul(mixed, 2.0**-31, out=part)
    return noise


@_uniform_noise.register_fake
def _(like: Tensor, key: Tensor) -> Tensor:
    return torch.empty(like.shape, dtype=torch.float32, device=like.device)
