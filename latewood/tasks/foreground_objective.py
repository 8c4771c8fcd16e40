"""Learning foreground masks from labels that were found without people: loss, scores, symmetry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latewood.errors import invalid
from latewood.kernels.inpainting import evaluate
from latewood.segmentation import Settings
from latewood.tasks.data.datasets import Batch

__all__ = ["Dihedral", "Foreground", "inpainting_error"]


class Foreground:
    """Binary cross-entropy of a model that maps images to logits (n, 1, height, width).

    ``evaluate`` compares with the labels ("iou", "accuracy"), which goes on rising when the model
    begins to learn their mistakes. Two measures need no labels: "inpainting" (J), the error with
    which the regions of the model's own masks predict one another, and "agreement", the overlap
    of the mask of an image and that of its mirror image.
    """

    def loss(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
        """Mean binary cross-entropy over the pixels."""
        images, labels = batch
        return F.binary_cross_entropy_with_logits(model(images)[:, 0], labels.float())

    @torch.no_grad()
    def evaluate(
        self, model: nn.Module, batch: Batch, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Means over the batch: "loss", "accuracy", "iou", "inpainting" and "agreement"."""
        images, labels = batch
        logits = model(images)[:, 0]
        masks = logits > 0
        mirrored = (model(images.flip(-1))[:, 0] > 0).flip(-1)
        return {
            "loss": F.binary_cross_entropy_with_logits(logits.float(), labels.float()),
            "accuracy": (masks == labels.bool()).float().mean(),
            "iou": _overlap(masks, labels.bool()).mean(),
            "inpainting": inpainting_error(images, masks).mean(),
            "agreement": _overlap(masks, mirrored).mean(),
        }

    def summarise(self, means: Mapping[str, float]) -> dict[str, float]:
        """The means as they are."""
        return dict(means)


def inpainting_error(images: Tensor, masks: Tensor) -> Tensor:
    """J of masks, with the published window scaled to the size of the images.

    Args:
        images: (n, channels, height, width) in [-1, 1].
        masks: bool, (n, height, width).

    Returns:
        (n,), 0 where a region is empty.
    """
    flat = masks.flatten(1)
    both = (flat.any(1) & ~flat.all(1)).nonzero().flatten()
    errors = images.new_zeros(len(images))
    if len(both):
        height, width = masks.shape[-2:]
        settings = Settings(scaled=True).inpainting(height, width, images.shape[1])
        evaluation = evaluate(images[both].float(), masks[both], settings)
        errors[both] = evaluation.inpainting.to(errors.dtype)
    return errors


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
