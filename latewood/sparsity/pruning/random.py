"""Random masks: the baselines that any way of choosing weights has to beat."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from latewood.errors import invalid
from latewood.sparsity.fixed import Masks

__all__ = ["random_masks", "shuffled_masks"]


def random_masks(weights: Mapping[str, Tensor], *, density: float, seed: int) -> Masks:
    """Keeps round(density * n) random weights of each layer of n.

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
        name: (torch.arange(each.numel()) < round(density * each.numel())).view(each.shape)
        for name, each in weights.items()
    }
    shuffled = shuffled_masks(first, seed=seed)
    return {name: mask.to(weights[name].device) for name, mask in shuffled.items()}


def shuffled_masks(masks: Mapping[str, Tensor], *, seed: int) -> Masks:
    """Masks with the same number of weights in every layer, at random places.

    Trained from a ticket's snapshot they tell what the places are worth beyond the counts.

    Args:
        masks: parameter name -> bool mask.
        seed: decides the places.

    Returns:
        Parameter name -> bool mask of the same shape and count.
    """
    generator = torch.Generator().manual_seed(seed)
    return {
        name: mask.flatten()[
            torch.randperm(mask.numel(), generator=generator).to(mask.device)
        ].view_as(mask)
        for name, mask in masks.items()
    }
