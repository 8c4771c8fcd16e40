"""MNIST: handwritten digits in grey, 28x28 pixels."""

from __future__ import annotations

import torch

from latewood.tasks.data.images import image_splits
from latewood.tasks.data.label_noise import permute_labels
from latewood.tasks.objectives import Classification
from latewood.tasks.task import Task

__all__ = ["mnist"]


def mnist(
    *,
    folder: str | None = None,
    hub: str | None = None,
    validation: int | None = None,
    stratified: bool = True,
    split_seed: int = 42,
    limit_train: int | None = None,
    limit_validation: int | None = None,
    label_smoothing: float = 0.0,
    label_noise: float = 0.0,
    label_seed: int = 12345,
    mean: float = 0.1307,
    std: float = 0.3081,
) -> Task:
    """Classification of handwritten digits.

    Args:
        folder: folder of the data; None looks in $LATEWOOD_DATA/mnist and data/mnist.
        hub: data set on the Hugging Face hub to use instead, for example "ylecun/mnist".
        validation: number of training images to hold out and score on; None trains on all and
            scores on the test images.
        stratified: hold out the same share of every class.
        split_seed: seed of the choice of images to hold out.
        limit_train: train on this many images only, in the proportions of the classes.
        limit_validation: score on this many images only, likewise.
        label_smoothing: share of the target spread evenly over the classes, in training only.
        label_noise: share of the samples, of both parts, whose labels are permuted among
            themselves; 1 makes all labels random.
        label_seed: seed of that permutation.
        mean: of the pixels, in units of the full range.
        std: of the pixels, in the same units.

    Returns:
        task with inputs (n, 1, 28, 28) and int64 labels (n,).

    Raises:
        RequestError: no data, not the data expected, or a number out of range.
        WorkError: a file or an image is damaged.
    """
    train, scored = image_splits(
        task="mnist",
        names=("mnist",),
        hub_name="ylecun/mnist",
        folder=folder,
        hub=hub,
        classes=10,
        mean=(mean,),
        std=(std,),
        validation=validation,
        stratified=stratified,
        split_seed=split_seed,
        limit_train=limit_train,
        limit_validation=limit_validation,
    )
    train, scored = permute_labels(train, scored, fraction=label_noise, seed=label_seed)
    _, height, width = train.tensors[0].shape[1:]
    return Task(
        name="mnist",
        train=train,
        validation=scored,
        objective=Classification(label_smoothing=label_smoothing),
        headline="accuracy",
        model="lenet",
        model_arguments={
            "num_classes": 10,
            "in_channels": 1,
            "image_size": height,
            "in_features": height * width,
        },
        example_inputs=(torch.zeros(1, 1, height, width),),
    )
