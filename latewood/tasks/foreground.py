"""Foreground masks learned from a folder of images alone: labels are found, not given."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from latewood.errors import WorkError, invalid
from latewood.segmentation import PRESETS, downsample, segment
from latewood.segmentation.image_files import find_images
from latewood.segmentation.image_tensors import pictures
from latewood.tasks.data.datasets import Batch, TensorDataset
from latewood.tasks.data.locate import find_folder
from latewood.tasks.foreground_objective import Dihedral, Foreground
from latewood.tasks.task import Task
from latewood.terminal.progress import track

__all__ = ["foreground", "foreground_without_images"]


def foreground(
    *,
    folder: str | None = None,
    size: int = 64,
    preset: Literal["paper", "robust", "fast"] = "robust",
    validation: float = 0.2,
    split_seed: int = 0,
    shift: float = 0.1,
) -> Task:
    """A network that finds the foreground as the average of many masks would.

    Every image is shrunk and cut to a square, and its mask is found by ``segment``, with window
    and diversity following the size. A network trained on these masks for a short time learns what
    they have in common and not their single mistakes. Images on which the search found nothing
    (constant, degenerate) are left out. Files called ``NAME_mask`` are left out as well: no label
    given by people is used.

    Args:
        folder: folder of images; None looks in $LATEWOOD_DATA/foreground and data/foreground.
        size: side of the images that are learned from, in pixels.
        preset: how the labels are found.
        validation: share of the images to hold out, in (0, 1).
        split_seed: seed of the choice of images to hold out.
        shift: standard deviation of random shifts of each colour channel in training.

    Returns:
        task with images (n, 3, size, size) in [-1, 1] and masks (n, size, size); its model gives
        logits (n, 1, size, size).

    Raises:
        RequestError: no images, fewer than two, or a number out of range.
        WorkError: a file cannot be read.

    Source: arXiv 2012.07287, refinement of the masks by a network; its details are ours.
    """
    if size < 8:
        raise invalid("size", size, "8 pixels or more")
    if not 0 < validation < 1:
        raise invalid("validation", validation, "a share, between 0 and 1")
    home = find_folder("foreground", folder, names=("foreground",), layout="image files")
    files = [path for path in find_images([home]) if not path.stem.endswith("_mask")]
    images = torch.stack([_square(path, size) for path in track(files, "reading", len(files))])
    segmentations = segment(images.float() / 255, preset=PRESETS[preset], scaled=True, size=None)
    useful = [
        i for i, one in enumerate(segmentations) if not {"constant", "degenerate"} & {*one.flags}
    ]
    held_out = round(validation * len(useful))
    if not 0 < held_out < len(useful):
        raise WorkError(
            f"{home}: {len(useful)} of {len(files)} images have a mask to learn from; at least one "
            f"is needed for training and one to hold out (validation = {validation})"
        )
    masks = torch.stack([one.mask for one in segmentations])
    order = torch.tensor(useful)
    order = order[torch.randperm(len(order), generator=torch.Generator().manual_seed(split_seed))]
    data = TensorDataset(images, masks, transform=_scaled)
    return replace(
        foreground_without_images(size),
        train=data.subset(order[held_out:].sort().values),
        validation=data.subset(order[:held_out].sort().values),
        augment=Dihedral(shift),
    )


def foreground_without_images(size: int = 64) -> Task:
    """The task for those who only use a trained network: what it is like, and no samples.

    Args:
        size: side of the images that were learned from, in pixels.
    """
    nothing = TensorDataset(torch.zeros(0, 3, size, size), torch.zeros(0, size, size))
    return Task(
        name="foreground",
        train=nothing,
        validation=nothing,
        objective=Foreground(),
        headline="inpainting",
        model="segmentation_unet",
        model_arguments={"in_channels": 3},
        example_inputs=(torch.zeros(1, 3, size, size),),
    )


def _square(path: Path, size: int) -> Tensor:
    """The middle of an image, shrunk or grown to a square, as bytes (3, size, size)."""
    (image,), _ = pictures(path, torch.float32)
    small = downsample(image, size)
    height, width = small.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    cut = small[:, top : top + side, left : left + side]
    if side != size:
        cut = torch.nn.functional.interpolate(cut[None], size=(size, size), mode="bilinear")[0]
    return (cut.expand(3, -1, -1) * 255).round().to(torch.uint8)


def _scaled(batch: Batch) -> Batch:
    images, masks = batch
    return images.float() / 127.5 - 1, masks
