"""Learning foreground masks from labels that were found without people: loss, scores, symmetry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latewood.errors import invalid
from latewood.training.data import Batch

__all__ = ["Dihedral", "Foreground"]


class Foreground:
    """Binary cross-entropy of a model that maps images to logits (n, 1, height, width).

    ``evaluate`` compares with the labels ("iou", "accuracy") and, without any label, with the
    model itself: "agreement" is the overlap of the mask of an image and that of its mirror image.
    Where agreement stops rising, the model has begun to learn single labels by heart.
    """

    def loss(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
        """Mean binary cross-entropy over the pixels."""
        images, labels = batch
        return F.binary_cross_entropy_with_logits(model(images)[:, 0], labels.float())

    @torch.no_grad()
    def evaluate(
        self, model: nn.Module, batch: Batch, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Means over the batch: "loss", "accuracy", "iou" with the labels, and "agreement"."""
        images, labels = batch
        logits = model(images)[:, 0]
        masks = logits > 0
        mirrored = (model(images.flip(-1))[:, 0] > 0).flip(-1)
        return {
            "loss": F.binary_cross_entropy_with_logits(logits.float(), labels.float()),
            "accuracy": (masks == labels.bool()).float().mean(),
            "iou": _overlap(masks, labels.bool()).mean(),
            "agreement": _overlap(masks, mirrored).mean(),
        }

    def summarise(self, means: Mapping[str, float]) -> dict[str, float]:
        """The means as they are."""
        return dict(means)


@dataclass(frozen=True)
class Dihedral:
    """Turns and mirrors images with their masks, each at random, and shifts their colours.

    Args:
        shift: standard deviation of the shift of each channel.

    Raises:
        RequestError: a negative shift.
    """

    shift: float = 0.1

    def __post_init__(self) -> None:
        if self.shift < 0:
            raise invalid("shift", self.shift, "0 or more")

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """The batch (images (n, c, side, side), masks (n, side, side)) after random moves."""
        images, masks = batch
        moves = torch.randint(8, (len(images),), generator=generator)
        shifts = torch.randn(*images.shape[:2], 1, 1, generator=generator).to(images)
        moved = [
            (_move(image, int(move)), _move(mask, int(move)))
            for image, mask, move in zip(images, masks, moves, strict=True)
        ]
        turned, labels = (torch.stack(parts) for parts in zip(*moved, strict=True))
        return turned + self.shift * shifts, labels


def _move(planes: Tensor, move: int) -> Tensor:
    turned = torch.rot90(planes, move % 4, (-2, -1))
    return turned.flip(-1) if move >= 4 else turned


def _overlap(first: Tensor, second: Tensor) -> Tensor:
    """Overlap of masks (n, height, width), image by image; two empty ones agree."""
    both, either = ((f(first, second)).sum((-2, -1)) for f in (torch.logical_and, torch.logical_or))
    return torch.where(either > 0, both / either.clamp(min=1), 1.0)
