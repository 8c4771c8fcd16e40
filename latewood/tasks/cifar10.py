"""CIFAR-10: small colour images of ten classes."""

from __future__ import annotations

import torch

from latewood.tasks.data.augmentation import CropAndFlip
from latewood.tasks.data.datasets import Normalise
from latewood.tasks.data.images import image_splits
from latewood.tasks.data.label_noise import permute_labels
from latewood.tasks.objectives import Classification
from latewood.tasks.task import Task

__all__ = ["cifar10"]


def cifar10(
    *,
    folder: str | None = None,
    hub: str | None = None,
    validation: int | None = None,
    stratified: bool = True,
    split_seed: int = 42,
    limit_train: int | None = None,
    limit_validation: int | None = None,
    augment: bool = True,
    padding: int = 4,
    flip: float = 0.5,
    label_smoothing: float = 0.0,
    label_noise: float = 0.0,
    label_seed: int = 12345,
    mean: tuple[float, float, float] = (125.3 / 255, 123.0 / 255, 113.9 / 255),
    std: tuple[float, float, float] = (63.0 / 255, 62.1 / 255, 66.7 / 255),
) -> Task:
    """Classification of 32x32 colour images into ten classes.

    Args:
        folder: folder of the data; None looks in $LATEWOOD_DATA/cifar10 and data/cifar10.
        hub: data set on the Hugging Face hub to use instead, for example "uoft-cs/cifar10".
        validation: number of training images to hold out and score on (the papers hold out
            5,000); None trains on all and scores on the test images.
        stratified: hold out the same share of every class.
        split_seed: seed of the choice of images to hold out.
        limit_train: train on this many images only, in the proportions of the classes.
        limit_validation: score on this many images only, likewise.
        augment: crop and flip training images at random.
        padding: black pixels added on each side before the crop.
        flip: probability of a flip.
        label_smoothing: share of the target spread evenly over the classes, in training only.
        label_noise: share of the samples, of both parts, whose labels are permuted among
            themselves; 1 makes all labels random.
        label_seed: seed of that permutation.
        mean: per channel, in units of the full range.
        std: per channel, in the same units.

    Returns:
        task with inputs (n, 3, 32, 32) and int64 labels (n,).

    Raises:
        RequestError: no data, not the data expected, or a number out of range.
        WorkError: a file or an image is damaged.
    """
    train, scored = image_splits(
        task="cifar10",
        names=("cifar10",),
        hub_name="uoft-cs/cifar10",
        folder=folder,
        hub=hub,
        classes=10,
        mean=mean,
        std=std,
        validation=validation,
        stratified=stratified,
        split_seed=split_seed,
        limit_train=limit_train,
        limit_validation=limit_validation,
    )
    train, scored = permute_labels(train, scored, fraction=label_noise, seed=label_seed)
    channels, height, width = train.tensors[0].shape[1:]
    black = Normalise(torch.tensor(mean), torch.tensor(std)).black
    return Task(
        name="cifar10",
        train=train,
        validation=scored,
        objective=Classification(label_smoothing=label_smoothing),
        headline="accuracy",
        model="resnet20",
        model_arguments={
            "num_classes": 10,
            "in_channels": channels,
            "image_size": height,
            "in_features": channels * height * width,
        },
        example_inputs=(torch.zeros(1, channels, height, width),),
        augment=CropAndFlip(padding=padding, flip=flip, fill=black) if augment else None,
    )
