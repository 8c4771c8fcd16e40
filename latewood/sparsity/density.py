"""Densities: of each layer, and which entries an exact one keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from latewood.errors import invalid

__all__ = ["largest_logits", "largest_only", "require_reachable", "shares"]


def shares(
    marked: Mapping[str, Tensor], layers: Mapping[str, str]
) -> tuple[float, dict[str, float]]:
    """Which share of all entries is marked, and of each layer's, its tensors taken together.

    Args:
        marked: parameter name -> bool tensor.
        layers: parameter name -> name of its layer; where that is empty, the parameter's counts.

    Returns:
        The share of all, and the share by layer in the order of the parameters.
    """
    counts: dict[str, int] = {}
    sizes: dict[str, int] = {}
    for name, each in marked.items():
        layer = layers[name] or name
        counts[layer] = counts.get(layer, 0) + int(each.sum())
        sizes[layer] = sizes.get(layer, 0) + each.numel()
    by_layer = {layer: count / sizes[layer] for layer, count in counts.items()}
    return sum(counts.values()) / sum(sizes.values()), by_layer


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
    require_reachable(density, sizes)
    ranked = torch.cat([each.flatten().cpu().double() for each in logits])
    for part in ranked.split(sizes):
        part[part.argmax()] = math.inf
    kept = torch.zeros(total, dtype=torch.bool)
    kept[torch.argsort(ranked, descending=True, stable=True)[: round(density * total)]] = True
    return [
        part.view_as(each).to(each.device)
        for each, part in zip(logits, kept.split(sizes), strict=True)
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
