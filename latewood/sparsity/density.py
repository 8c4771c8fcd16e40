"""Which entries of learned masks an exact density keeps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from latewood.errors import invalid

__all__ = ["largest_logits", "largest_only", "require_reachable"]


def largest_logits(logits: Sequence[Tensor], density: float) -> list[Tensor]:
    """Masks that keep exactly round(density * n) of all n entries.

    Kept are the largest logit of every tensor, then the largest of the rest; of equal logits the
    earlier entry.

    Args:
        logits: one tensor per layer, any shapes, without gradient.
        density: fraction kept, in (0, 1].

    Returns:
        Bool masks with the shapes and devices of the logits, True where kept.

    Raises:
        RequestError: a density that leaves some layer without an entry.
    """
    sizes = [layer.numel() for layer in logits]
    total = sum(sizes)
    require_reachable(density, sizes)
    ranked = torch.cat([layer.flatten().cpu().double() for layer in logits])
    for part in ranked.split(sizes):
        part[part.argmax()] = math.inf
    mask = torch.zeros(total, dtype=torch.bool)
    mask[torch.argsort(ranked, descending=True, stable=True)[: round(density * total)]] = True
    return [
        part.view_as(layer).to(layer.device)
        for layer, part in zip(logits, mask.split(sizes), strict=True)
    ]


def require_reachable(density: float, sizes: Sequence[int]) -> None:
    """Refuses a density that leaves some layer without an entry.

    Args:
        density: fraction kept.
        sizes: number of entries of each layer.

    Raises:
        RequestError: it is not in (0, 1], or leaves fewer entries than layers.
    """
    total = sum(sizes)
    if not 0.0 < density <= 1.0 or round(density * total) < len(sizes):
        least = len(sizes) / total
        raise invalid(
            "density", density, f"a number in ({least:.3g}, 1]: every layer keeps a weight"
        )


def largest_only(logits: Tensor) -> Tensor:
    """A mask that keeps the largest logit alone, the first of equal ones: bool, same shape."""
    positions = torch.arange(logits.numel(), device=logits.device)
    return (positions == logits.detach().flatten().argmax()).view(logits.shape)
