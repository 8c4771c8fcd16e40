"""Image generation: denoising diffusion on MNIST."""

from __future__ import annotations

import torch

from latewood.tasks.data.images import image_splits
from latewood.tasks.objectives import Diffusion
from latewood.tasks.task import Task

__all__ = ["mnist_diffusion"]


def mnist_diffusion(
    *,
    folder: str | None = None,
    hub: str | None = None,
    validation: int | None = 6000,
    split_seed: int = 42,
    limit_train: int | None = None,
    limit_validation: int | None = None,
    steps: int = 1000,
    mean: float = 0.1307,
    std: float = 0.3081,
) -> Task:
    """Prediction of the noise in handwritten digits that were diffused.

    Args:
        folder: folder of the data; None looks in $LATEWOOD_DATA/mnist and data/mnist.
        hub: data set on the Hugging Face hub to use instead, for example "ylecun/mnist".
        validation: number of training images to hold out and score on; None trains on all and
            scores on the test images.
        split_seed: seed of the choice of images to hold out.
        limit_train: train on this many images only, in the proportions of the classes.
        limit_validation: score on this many images only, likewise.
        steps: number of time steps of the diffusion.
        mean: of the pixels, in units of the full range.
        std: of the pixels, in the same units.

    Returns:
        task with images (n, 1, 28, 28) and labels (n,), which the loss does not read; its model
        maps (images, time steps) to noise.

    Raises:
        RequestError: no data, not the data expected, or a number out of range.
        WorkError: a file or an image is damaged.

    Source: arXiv 2408.11804, image generation.
    """
    train, scored = image_splits(
        task="mnist_diffusion",
        names=("mnist",),
        hub_name="ylecun/mnist",
        folder=folder,
        hub=hub,
        classes=10,
        mean=(mean,),
        std=(std,),
        validation=validation,
        stratified=False,
        split_seed=split_seed,
        limit_train=limit_train,
        limit_validation=limit_validation,
    )
    shape = train.tensors[0].shape[1:]
    return Task(
        name="mnist_diffusion",
        train=train,
        validation=scored,
        objective=Diffusion(steps=steps),
        headline="loss",
        higher_is_better=False,
        model="unet",
        model_arguments={"in_channels": shape[0], "image_size": shape[1], "time_steps": steps},
        example_inputs=(torch.zeros(1, *shape), torch.zeros(1, dtype=torch.int64)),
    )
