"""Which entries an exact density keeps: the largest logits, and at least one of every layer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from latewood.errors import invalid

__all__ = ["largest_logits", "largest_only"]


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
    sizes = [each.numel() for each in logits]
    total = sum(sizes)
    if not 0.0 < density <= 1.0 or round(density * total) < len(sizes):
        least = len(sizes) / total
        raise invalid(
            "density", density, f"a number in ({least:.3g}, 1]: every layer keeps a weight"
        )
    ranked = torch.cat([each.flatten().cpu().double() for each in logits])
    for part in ranked.split(sizes):
        part[part.argmax()] = math.inf
    kept = torch.zeros(total, dtype=torch.bool)
    kept[torch.argsort(ranked, descending=True, stable=True)[: round(density * total)]] = True
    return [
        part.view_as(each).to(each.device)
        for each, part in zip(logits, kept.split(sizes), strict=True)
    ]


def largest_only(logits: Tensor) -> Tensor:
    """A mask that keeps the largest logit alone, the first of equal ones: bool, same shape."""
    positions = torch.arange(logits.numel(), device=logits.device)
    return (positions == logits.detach().flatten().argmax()).view(logits.shape)
