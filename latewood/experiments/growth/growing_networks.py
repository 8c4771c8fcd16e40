"""The data and networks on which growth is judged: small images and a text by characters."""

from __future__ import annotations

import argparse
import inspect
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from latewood.experiments.flop_counted_training import TrainingSetting
from latewood.experiments.registry import Scale
from latewood.models import mlp, transformer
from latewood.models.parts import Activation, initialize
from latewood.models.resnet import BasicBlock, ResNet
from latewood.tasks import Batch, Task, TensorDataset
from latewood.tasks.cifar10 import cifar10
from latewood.tasks.digits import digits
from latewood.tasks.shakespeare import shakespeare

__all__ = ["characters", "perceptrons", "residual_networks", "small_images"]


class Flip:
    """Mirrors half of the images."""

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """A batch with mirrored images."""
        images, *rest = batch
        mirrored = torch.rand(len(images), generator=generator) < 0.5
        return (torch.where(mirrored[:, None, None, None], images.flip(-1), images), *rest)


def small_images(scale: Scale, *, samples: int) -> Task:
    """CIFAR-10 averaged to 16x16 pixels, so many training images and all test images; mirrored.

    At the quick scale digits of 8x8 pixels, which are always there.
    """
    if scale == "quick":
        return digits()
    task = cifar10(limit_train=samples, augment=False)
    return replace(
        task,
        train=_averaged(task.train),
        validation=_averaged(task.validation),
        example_inputs=(torch.zeros(1, 3, 16, 16),),
        augment=Flip(),
    )


def _averaged(dataset: object) -> TensorDataset:
    assert isinstance(dataset, TensorDataset)
    chunks = torch.arange(len(dataset)).split(1000)
    parts = [F.avg_pool2d(dataset.gather(indices)[0], 2) for indices in chunks]
    return TensorDataset(torch.cat(parts), dataset.tensors[1])


def perceptrons(
    task: Task,
    *,
    width: int,
    rate: float,
    batch_size: int = 64,
    activation: Activation = "relu",
    adam: bool = False,
    first_only: bool = False,
) -> TrainingSetting:
    """Two hidden layers of ``width`` units without norms, SGD with momentum or AdamW.

    Args:
        task: images.
        width: of the full network.
        rate: the peak learning rate.
        batch_size: samples a step.
        activation: after each hidden layer.
        adam: AdamW instead of SGD.
        first_only: whether only the first hidden layer is narrower in a part of the network.
    """
    inputs = task.example_inputs[0].numel()

    def network(fraction: float) -> nn.Module:
        narrow = 2 * round(fraction * width / 2)
        hidden = [narrow, width if first_only else narrow]
        return mlp(in_features=inputs, hidden=hidden, activation=activation, init="kaiming_normal")

    return TrainingSetting(
        task=task,
        network=network,
        optimizer=partial(torch.optim.AdamW, lr=rate, weight_decay=0.0)
        if adam
        else partial(torch.optim.SGD, lr=rate, momentum=0.9),
        epochs=1,
        batch_size=batch_size,
        weight_decay=1e-2 if adam else 5e-4,
    )


def residual_networks(
    task: Task, *, width: int, rate: float, batch_size: int = 64
) -> TrainingSetting:
    """Three basic blocks with ``width``, 2 and 4 times ``width`` channels; SGD with momentum.

    Args:
        task: images.
        width: of the full network's first block.
        rate: the peak learning rate.
        batch_size: samples a step.
    """

    def network(fraction: float) -> nn.Module:
        narrow = 2 * round(fraction * width / 2)
        model = ResNet(
            BasicBlock,
            depths=(1, 1, 1),
            widths=(narrow, 2 * narrow, 4 * narrow),
            shortcut="conv",
            stem="cifar",
            num_classes=10,
            in_channels=task.example_inputs[0].shape[1],
        )
        initialize(model, "kaiming_normal")
        return model

    return TrainingSetting(
        task=task,
        network=network,
        optimizer=partial(torch.optim.SGD, lr=rate, momentum=0.9),
        epochs=1,
        batch_size=batch_size,
        weight_decay=5e-4,
    )


def characters(scale: Scale, folder: Path, *, width: int, head_size: int) -> TrainingSetting:
    """A text by characters and a Transformer of three layers; AdamW at a rate of 1e-3 and clipping.

    Windows of 64 characters, 16 a step, heads of ``head_size``, hidden layers of 4 times the width.

    Args:
        scale: "quick" reads a module of Python's standard library, which is always there; the
            others Shakespeare.
        folder: where the quick scale puts its text.
        width: of the full network's stream.
        head_size: entries of an attention head; a part of the network has fewer heads.
    """
    if scale == "quick":
        (folder / "input.txt").write_text(inspect.getsource(argparse), encoding="utf-8")
    context = 32 if scale == "quick" else 64
    task = shakespeare(folder=str(folder) if scale == "quick" else None, context=context)
    vocabulary = task.model_arguments["vocabulary"]
    assert isinstance(vocabulary, int)

    def network(fraction: float) -> nn.Module:
        heads = round(fraction * width / head_size)
        return transformer(
            vocabulary=vocabulary,
            context=context,
            width=heads * head_size,
            layers=1 if scale == "quick" else 3,
            heads=heads,
        )

    return TrainingSetting(
        task=task,
        network=network,
        optimizer=partial(torch.optim.AdamW, lr=1e-3),
        epochs=1,
        batch_size=16,
        weight_decay=1e-2,
        clip_norm=1.0,
    )
