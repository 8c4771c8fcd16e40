"""The trainings on which grow-and-prune is judged: digits, characters, and masks of foregrounds."""

from __future__ import annotations

import argparse
import inspect
import os
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from latewood.errors import RequestError
from latewood.experiments.flop_counted_training import TrainingSetting
from latewood.experiments.registry import Scale
from latewood.experiments.segmentation.composite_images import composites
from latewood.models import convnet, deeplab, lstm_language_model
from latewood.segmentation import downsample
from latewood.segmentation.image_tensors import pictures
from latewood.tasks import Task, TensorDataset
from latewood.tasks.digits import digits
from latewood.tasks.foreground_objective import Dihedral, Foreground
from latewood.tasks.shakespeare import shakespeare

__all__ = ["characters", "foregrounds", "images"]

CHANNELS = (32, 64, 64)
HIDDEN: dict[Scale, int] = {"quick": 16, "cpu": 96, "full": 256}
SIDE: dict[Scale, int] = {"quick": 16, "cpu": 32, "full": 64}


def images(*, epochs: int) -> TrainingSetting:
    """Digits of 8x8 pixels, the convolutional network 1-32-64-64, 19 batches of 64 an epoch."""
    return TrainingSetting(
        task=digits(),
        network=lambda fraction: convnet(channels=[_part(fraction, width) for width in CHANNELS]),
        optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True),
        epochs=epochs,
        batch_size=64,
        weight_decay=1e-4,
    )


def characters(scale: Scale, folder: Path, *, epochs: int) -> TrainingSetting:
    """A text by characters, a language model of two LSTM layers, 25 batches an epoch.

    Args:
        scale: "quick" reads a module of Python's standard library, which is always there; the
            others Shakespeare.
        folder: where the quick scale puts its text.
        epochs: of so many batches each, not passes over the text.
    """
    if scale == "quick":
        (folder / "input.txt").write_text(inspect.getsource(argparse), encoding="utf-8")
    task = shakespeare(folder=str(folder) if scale == "quick" else None, context=64)
    vocabulary = task.model_arguments["vocabulary"]
    assert isinstance(vocabulary, int)
    return TrainingSetting(
        task=task,
        network=lambda fraction: lstm_language_model(
            vocabulary=vocabulary, hidden=_part(fraction, HIDDEN[scale])
        ),
        optimizer=partial(torch.optim.AdamW, lr=5e-3),
        epochs=epochs,
        batch_size=16,
        steps_per_epoch=25,
        clip_norm=1.0,
    )


def foregrounds(scale: Scale, *, epochs: int, seed: int) -> TrainingSetting:
    """Masks of foregrounds, a small DeepLab with dilations in its last stage, 8 batches an epoch.

    Images and masks are turned and mirrored at random; a quarter of the images is held out.

    Args:
        scale: "quick" draws composites; the others read the evaluation set in
            $LATEWOOD_DATA/segmentation, photographs and composites together.
        epochs: of so many batches each.
        seed: of the choice of images to hold out.

    Raises:
        RequestError: the evaluation set is not there.
    """
    side = SIDE[scale]
    if scale == "quick":
        images, masks = composites(48, size=side, colours="warm on green")
    else:
        images, masks = _evaluation_set(side)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    data, held_out = TensorDataset(2 * images - 1, masks), len(order) // 4
    task = Task(
        name="foregrounds",
        train=data.subset(order[held_out:]),
        validation=data.subset(order[:held_out]),
        objective=Foreground(),
        headline="iou",
        model="deeplab",
        example_inputs=(torch.zeros(1, 3, side, side),),
        augment=Dihedral(),
    )
    return TrainingSetting(
        task=task,
        network=_small_deeplab,
        optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True),
        epochs=epochs,
        batch_size=12,
        steps_per_epoch=8,
        weight_decay=1e-4,
    )


def _small_deeplab(fraction: float) -> nn.Module:
    return deeplab(
        block="basic",
        depths=(1, 1, 1, 1),
        width=max(fraction, 1 / 8) / 8,
        stem="cifar",
        channels=_part(fraction, 32),
        rates=(2, 4, 6),
        dropout=0.0,
    )


def _part(fraction: float, width: int) -> int:
    return max(1, round(fraction * width))


def _evaluation_set(side: int) -> tuple[Tensor, Tensor]:
    root = Path(os.environ.get("LATEWOOD_DATA", "data")) / "segmentation"
    files = sorted(root.glob("*/*_mask.png"))
    if not files:
        raise RequestError(
            f"LATEWOOD_DATA: no pairs NAME.png and NAME_mask.png in {root}; expected the folder "
            "above segmentation/"
        )
    images = [_shrunk(path.with_name(path.name.replace("_mask", "")), side) for path in files]
    masks = [_shrunk(path, side)[0] > 0.5 for path in files]
    return torch.stack([picture.expand(3, -1, -1) for picture in images]), torch.stack(masks)


def _shrunk(path: Path, side: int) -> Tensor:
    (image,), _ = pictures(path, torch.float32)
    return downsample(image, side)
