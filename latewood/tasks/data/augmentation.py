"""Random crops and flips of whole batches: one gather, every sample with its own numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from latewood.errors import invalid
from latewood.tasks.data.datasets import Batch

__all__ = ["CropAndFlip", "crop_and_flip"]


def crop_and_flip(
    images: Tensor,
    top: Tensor,
    left: Tensor,
    flipped: Tensor,
    *,
    padding: int,
    fill: Tensor | None = None,
) -> Tensor:
    """Pads every image, cuts the original size out again, and mirrors some left to right.

    ``out[n, :, i, j] = padded[n, :, top_n + i, left_n + j]``, with ``width - 1 - j`` in place of
    ``j`` where ``flipped_n``.

    Args:
        images: shape (n, channels, height, width).
        top: int64 first rows of the cuts in the padded images, shape (n,), 0 to 2 padding.
        left: int64 first columns, likewise.
        flipped: bool, shape (n,).
        padding: pixels added on each side.
        fill: value of the added pixels per channel, shape (channels,); 0 if None.

    Returns:
        tensor of the images' shape and dtype.
    """
    n, channels, height, width = images.shape
    wide = width + 2 * padding
    padded = images.new_zeros(n, channels, height + 2 * padding, wide)
    if fill is not None:
        padded += fill.to(images).view(-1, 1, 1)
    padded[:, :, padding : padding + height, padding : padding + width] = images
    rows = top[:, None] + torch.arange(height, device=images.device)
    along = torch.arange(width, device=images.device)
    columns = left[:, None] + torch.where(flipped[:, None], along.flip(0), along)
    pixels = (rows[:, :, None] * wide + columns[:, None, :]).view(n, 1, height * width)
    return padded.flatten(2).gather(2, pixels.expand(-1, channels, -1)).view_as(images)


class CropAndFlip:
    """Augments the images of a batch: a random cut of the padded image, mirrored half the time.

    Args:
        padding: pixels added on each side before the cut; 0 for no cut.
        flip: probability of mirroring.
        fill: value of the added pixels per channel, shape (channels,); 0 if None.

    Raises:
        RequestError: a negative padding or a probability out of range.

    Source: the usual CIFAR-10 augmentation (arXiv 1512.03385, section 4.2).
    """

    def __init__(self, *, padding: int = 4, flip: float = 0.5, fill: Tensor | None = None) -> None:
        if padding < 0:
            raise invalid("padding", padding, "0 or more pixels")
        if not 0 <= flip <= 1:
            raise invalid("flip", flip, "a probability, 0 to 1")
        self.padding = padding
        self.flip = flip
        self.fill = fill

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """The batch with its images (n, channels, height, width), the first field, changed."""
        images, *rest = batch
        n = len(images)
        # Drawn where the generator lives, so that every device sees the same numbers.
        device = generator.device
        corner = torch.randint(2 * self.padding + 1, (2, n), generator=generator, device=device)
        flipped = torch.rand(n, generator=generator, device=device) < self.flip
        top, left = corner.to(images.device)
        changed = crop_and_flip(
            images, top, left, flipped.to(images.device), padding=self.padding, fill=self.fill
        )
        return (changed, *rest)
