"""Random masks: the baselines that any way of choosing weights has to beat."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from latewood.core.masks import Masks, kept_count, shuffled_masks
from latewood.errors import invalid

__all__ = ["random_masks"]


def random_masks(weights: Mapping[str, Tensor], *, density: float, seed: int) -> Masks:
    """Keeps exactly round(density * n) random weights of each layer of n.

    Args:
        weights: parameter name -> weight, any shapes.
        density: fraction kept, in [0, 1].
        seed: decides which; the masks are the same on every device.

    Returns:
        Parameter name -> bool mask of the weight's shape, True where kept.

    Raises:
        RequestError: a density out of range.
    """
    if not 0.0 <= density <= 1.0:
        raise invalid("density", density, "a number in [0, 1]")
    first = {
        name: (
            torch.arange(weight.numel()) < kept_count(weight.numel(), density, rounding="nearest")
        ).view(weight.shape)
        for name, weight in weights.items()
    }
    shuffled = shuffled_masks(first, seed=seed)
    return {name: mask.to(weights[name].device) for name, mask in shuffled.items()}
