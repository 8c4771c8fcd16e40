"""Where searches start, and which of several results is taken."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["centred_rectangle", "outline_contrast"]


def centred_rectangle(height: int, width: int, margin: float = 0.2) -> Tensor:
    """A start: ones inside, a share of each side left free at both ends.

    Args:
        height, width: size in pixels.
        margin: the share, in [0, 0.5); rounded down to whole pixels, but one where there is room.

    Returns:
        bool, (height, width).

    Source: the authors' code, with a fifth on square images.
    """
    mask = torch.zeros(height, width, dtype=torch.bool)
    rows, columns = (
        # A share like 0.2 is a little more than a fifth in binary, never less.
        max(int(side * margin), 1 if margin > 0 and side > 2 else 0)
        for side in (height, width)
    )
    mask[rows : height - rows, columns : width - columns] = True
    return mask


def outline_contrast(images: Tensor, masks: Tensor) -> Tensor:
    """How much the image changes across the outlines of masks.

    Mean over the pairs of neighbouring pixels that the outline separates of
    ``sum_c |X_c(first) - X_c(second)|``.

    Args:
        images: (n, channels, height, width).
        masks: bool, (n, height, width).

    Returns:
        (n,), 0 for masks without an outline.
    """
    total, count = images.new_zeros(len(images)), images.new_zeros(len(images))
    for dim in (-1, -2):
        changes = images.diff(dim=dim).abs().sum(1)
        n = masks.shape[dim]
        separated = masks.narrow(dim, 1, n - 1) != masks.narrow(dim, 0, n - 1)
        total += (changes * separated).sum((-2, -1))
        count += separated.sum((-2, -1))
    return total / count.clamp(min=1)
