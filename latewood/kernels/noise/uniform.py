"""The noise alone, as an operator that compiled code calls as it is."""

from __future__ import annotations

import torch
from torch import Tensor

from latewood.kernels.dispatch import native
from latewood.kernels.noise.reference_noise import noise_reference

__all__ = ["uniform_noise"]


def uniform_noise(like: Tensor, key: Tensor) -> Tensor:
    """Numbers from (-1, 1), uniform and independent, that depend on the key and the place alone.

    So a pass that is computed again, as gradient checkpoints do, meets the same noise, and so do
    all processes of a run. Numbers have 16 bits: they are the middles of 65536 equal cells.

    Args:
        like: gives shape and device.
        key: 0-dim int64, on the same device.

    Returns:
        float32 of the shape of ``like``, contiguous; element k in row-major order is that of place
        k: group ``k // 128`` has 16 counters, whose words 0 to 3 serve 32 places each, the low half
        of each first.

    Source: Philox 4x32-10 (Salmon et al. 2011); the order of the places is ours.
    """
    noise: Tensor = torch.ops.latewood.uniform_noise(like.detach(), key)
    return noise


@torch.library.custom_op("latewood::uniform_noise", mutates_args=())
def _uniform_noise(like: Tensor, key: Tensor) -> Tensor:
    compiled = native() if like.device.type == "cpu" else None
    if compiled is None:
        return noise_reference(like.numel(), key, like.device).view(like.shape)
    noise = torch.empty(like.shape, dtype=torch.float32)
    compiled.noise_draw(int(key), noise, torch.get_num_threads())
    return noise


@_uniform_noise.register_fake
def _(like: Tensor, key: Tensor) -> Tensor:
    return torch.empty(like.shape, dtype=torch.float32, device=like.device)
