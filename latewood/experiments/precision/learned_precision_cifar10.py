"""Learned bits against full precision, uniform bits and two relatives: a small ResNet on CIFAR-10.

One residual block a stage at half width, images of 16x16 pixels, a fifth of the data, a few passes:
enough to compare trainings, far from the accuracy of long ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from latewood.core.threads import threads
from latewood.experiments.papers import LEARNED_PRECISION
from latewood.experiments.precision.compared_trainings import (
    ComparedTrainings,
    above,
    averages_met,
    comparisons,
)
from latewood.experiments.registry import Experiment, Results, Scale, Workspace, register, replicate
from latewood.models.parts import initialize
from latewood.models.resnet import BasicBlock, ResNet
from latewood.precision import NoiseSettings
from latewood.tasks import Task, TensorDataset
from latewood.tasks.cifar10 import cifar10

__all__ = ["LEARNED_PRECISION_CIFAR10"]

WIDTHS = (8, 16, 32)
IMAGES, HELD_OUT = 10_000, 4000
STEPS, BATCH, SEEDS = 300, 64, 4
RATE = 0.1
SNAP_AT = 0.5
NOISE = NoiseSettings(scale="fan_in", initial_bits=5.0)
"""Chosen on seed 100, of two scales."""
LAYERS = ("layer*",)
"""All but the first convolution and the classifier."""
LEARNED: Mapping[str, Mapping[str, Any]] = {
    "channel 2": {"target_bits": 2.0},
    "weight 2": {"target_bits": 2.0, "per": "weight"},
    "inputs 2": {"target_bits": 2.0, "activations": True},
}


def run(scale: Scale, workspace: Workspace) -> Results:
    """Trains everything from the same weights on the same batches, seed by seed."""
    task = halved()

    def measure(seed: int) -> dict[str, float]:
        return compared(task, seed).measure(LEARNED, allocations=(3,))

    settings = {
        "network": f"residual, one block a stage, {WIDTHS} channels",
        "images": f"{IMAGES} of 16x16 pixels",
        "steps": STEPS,
        "batch size": BATCH,
        "noise phase": SNAP_AT,
        "weights": "of all layers but the first and the last, which stay in float",
    }
    with threads(1):
        return replicate(measure, range(SEEDS), workspace, settings=settings)


def compared(task: Task, seed: int) -> ComparedTrainings:
    """The trainings of a seed."""
    return ComparedTrainings(
        task=task,
        network=_network,
        optimizer=partial(torch.optim.SGD, lr=RATE, momentum=0.9, nesterov=True, weight_decay=1e-4),
        steps=STEPS,
        batch_size=BATCH,
        seed=seed,
        noise=NOISE,
        snap_at=SNAP_AT,
        include=LAYERS,
    )


def halved() -> Task:
    """A part of CIFAR-10, each pixel the mean of four."""
    task = cifar10(limit_train=IMAGES, limit_validation=HELD_OUT, augment=False)

    def smaller(data: Any) -> TensorDataset:
        pixels, labels = data.gather(torch.arange(len(data)))[:2]
        return TensorDataset(F.avg_pool2d(pixels, 2), labels)

    return replace(task, train=smaller(task.train), validation=smaller(task.validation))


def _network() -> nn.Module:
    model = ResNet(
        BasicBlock,
        depths=(1, 1, 1),
        widths=WIDTHS,
        shortcut="conv",
        stem="cifar",
        num_classes=10,
        in_channels=3,
    )
    initialize(model, "kaiming_normal")
    return model


LEARNED_PRECISION_CIFAR10 = register(
    Experiment(
        name="learned-precision-cifar10",
        title="Learned bits against full precision, uniform bits and two relatives, on CIFAR-10",
        paper=LEARNED_PRECISION,
        run=run,
        scales=("cpu",),
        claims=(
            averages_met(dict.fromkeys(LEARNED, 2.0)),
            *comparisons(within=0.02, of_scores=True),
            above(
                "allocated-above-uniform",
                "Without training, 3 bits on average by the curvature of the loss are above "
                "uniform 3 bits.",
                "[I] the closed form as an instant allocator",
                "allocated 3",
                "rounded 3",
            ),
        ),
    )
)
