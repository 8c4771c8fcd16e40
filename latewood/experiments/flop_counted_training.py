"""Training that counts its multiply-accumulates, the same for all methods that are compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from latewood.core import Method, Restructuring, parameter_groups
from latewood.core.macs import macs
from latewood.core.modes import evaluated
from latewood.core.schedules import cosine, progress
from latewood.tasks import Batch, Task, batch_count, batch_stream
from latewood.training.fit import fit
from latewood.training.randomness import derive, seed_torch

__all__ = [
    "TrainingSetting",
    "build",
    "dense_training_macs",
    "fit_and_count",
    "measures",
    "score",
    "step_loss",
    "step_macs",
]

BACKWARD: Final = 2
"""Multiply-accumulates of a backward pass over those of the forward pass: half of them lead to the
layers' inputs, half to their weights."""

SCORED_AT_ONCE: Final = 128


@dataclass(frozen=True)
class TrainingSetting:
    """What all trainings that are compared with one another have in common.

    Args:
        task: the data and the objective.
        network: makes a network whose layers have about that fraction of their channels, 1 the
            full one, drawing from torch's global generator.
        optimizer: made from parameter groups; the learning rate it gives them is the peak.
        epochs: length of a training.
        batch_size: samples a step; what is left of the data behind the last full batch is skipped.
        steps_per_epoch: None is one pass over the data. Where a pass is long, a shorter stretch of
            it, at whose start a method may restructure the network.
        weight_decay: of weights, not of norms and biases.
        clip_norm: largest norm of the gradient of the network's own parameters; None does not clip.
    """

    task: Task
    network: Callable[[float], nn.Module]
    optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
    epochs: int
    batch_size: int
    steps_per_epoch: int | None = None
    weight_decay: float = 0.0
    clip_norm: float | None = None

    @property
    def period(self) -> int:
        """Optimizer steps of an epoch."""
        return self.steps_per_epoch or self.steps_per_pass

    @property
    def steps_per_pass(self) -> int:
        """Optimizer steps in one pass over the data."""
        return batch_count(len(self.task.train), self.batch_size, drop_last=True)


def build(setting: TrainingSetting, seed: int, fraction: float = 1.0) -> nn.Module:
    """The network with the weights of a seed, or one with a fraction of its channels.

    Torch's generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        seed_torch(derive(seed, "initial weights"), torch.device("cpu"))
        return setting.network(fraction)


def fit_and_count(
    setting: TrainingSetting,
    model: nn.Module,
    *,
    epochs: int,
    seed: int,
    rate: float = 1.0,
    method: Method | None = None,
    first_epoch: int = 0,
) -> int:
    """Trains a network with rates that fall along a cosine, and counts what that takes.

    ``sum over epochs of 3 * samples * macs(network of that epoch)``: a forward pass, and a backward
    pass of twice its cost. Norms, activations, masks and the optimizer do not count.

    Args:
        setting: data, optimizer and batch size.
        model: changed in place; one that a method restructures is counted as it is in each epoch.
        epochs: length of this training.
        seed: of the order of the data and of all noise.
        rate: factor on the optimizer's learning rates.
        method: what changes the training; None trains plainly.
        first_epoch: where in the seed's order of the data to begin.

    Returns:
        Multiply-accumulates of the whole training.
    """
    methods = [] if method is None else [method]
    optimizer = setting.optimizer(
        parameter_groups(model, methods, weight_decay=setting.weight_decay)
    )
    for group in optimizer.param_groups:
        group["lr"] *= rate
    schedule, total, spent = cosine(), epochs * setting.period, 0

    def start_epoch(step: int) -> None:
        nonlocal spent
        if step % setting.period == 0:
            _restructure(method, optimizer)
            spent += setting.period * step_macs(setting, model)

    def loss(model: nn.Module, numbered: tuple[int, Batch]) -> Tensor:
        step, batch = numbered
        return step_loss(setting.task, model, batch, derive(seed, "step", first_epoch, step))

    stream = batch_stream(
        setting.task.train,
        batch_size=setting.batch_size,
        seed=seed,
        start=first_epoch * setting.period,
        steps=total,
        drop_last=True,
    )
    model.train()
    fit(
        model,
        enumerate(stream),
        loss,
        optimizer,
        methods=methods,
        rate_factor=lambda step: schedule(progress(step, total)),
        clip_norm=setting.clip_norm,
        before_step=start_epoch,
    )
    return spent


def _restructure(method: object, optimizer: torch.optim.Optimizer) -> None:
    if isinstance(method, Restructuring):
        method.restructure(optimizer)


def step_macs(setting: TrainingSetting, model: nn.Module) -> int:
    """Multiply-accumulates of a training step of a network as it is now."""
    return (1 + BACKWARD) * setting.batch_size * macs(model, setting.task.example_inputs)


def step_loss(task: Task, model: nn.Module, batch: Batch, seed: int) -> Tensor:
    """The loss of a batch; its noise and the model's dropout depend on the seed alone."""
    noise = torch.Generator().manual_seed(seed)
    if task.augment is not None:
        batch = task.augment(batch, noise)
    with torch.random.fork_rng(devices=[]):
        seed_torch(seed, torch.device("cpu"))
        return task.objective.loss(model, batch, noise)


def dense_training_macs(setting: TrainingSetting) -> int:
    """What the training of the full network takes, as ``fit_and_count`` counts it."""
    return setting.epochs * setting.period * step_macs(setting, build(setting, 0))


def score(setting: TrainingSetting, model: nn.Module) -> float:
    """The task's headline measure of a network on the validation samples."""
    return measures(setting.task, model)[setting.task.headline]


@torch.no_grad()
def measures(task: Task, model: nn.Module) -> dict[str, float]:
    """All measures of a network on the validation samples."""
    scored = 0
    sums: dict[str, float] = {}
    noise = torch.Generator().manual_seed(0)
    with evaluated(model):
        for part in torch.arange(len(task.validation)).split(SCORED_AT_ONCE):
            values = task.objective.evaluate(model, task.validation.gather(part), noise)
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + len(part) * value.item()
            scored += len(part)
    means = {name: total / scored for name, total in sums.items()}
    return task.objective.summarise(means)
