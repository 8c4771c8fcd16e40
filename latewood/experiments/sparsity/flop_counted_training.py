"""Training that counts its multiply-accumulates, the same for all methods that are compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import torch
from torch import Tensor, nn

from latewood.core import Method, Restructuring, parameter_groups
from latewood.core.macs import macs
from latewood.core.modes import evaluated
from latewood.core.schedules import cosine, progress
from latewood.tasks.data import Batch, batch_count, batches
from latewood.tasks.task import Task
from latewood.training.randomness import derive, seed_torch

__all__ = ["Course", "build", "dense_training_macs", "fit", "score"]

BACKWARD: Final = 2
"""Multiply-accumulates of a backward pass over those of the forward pass: half of them lead to the
layers' inputs, half to their weights."""

SCORED_AT_ONCE: Final = 128


@dataclass(frozen=True)
class Course:
    """What all trainings that are compared with one another share.

    Args:
        task: the data and the objective.
        network: makes a network whose layers have about that share of their channels, 1 the full
            one, drawing from torch's global generator.
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


def build(course: Course, seed: int) -> nn.Module:
    """The full network with the weights of a seed; torch's generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        seed_torch(derive(seed, "initial weights"), torch.device("cpu"))
        return course.network(1.0)


def fit(
    course: Course,
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
        course: data, optimizer and batch size.
        model: changed in place; one that a method restructures is counted as it is in each epoch.
        epochs: length of this training.
        seed: of the order of the data and of all noise.
        rate: factor on the peak learning rate.
        method: what changes the training; None trains plainly.
        first_epoch: where in the seed's order of the data to begin.

    Returns:
        Multiply-accumulates of the whole training.
    """
    methods = [] if method is None else [method]
    groups = parameter_groups(model, methods, weight_decay=course.weight_decay)
    optimizer = course.optimizer(groups)
    peaks: list[float] = []
    own = _own_parameters(model, methods)
    schedule, total, spent = cosine(), epochs * course.period, 0
    model.train()
    for step, batch in enumerate(_stream(course, seed, first_epoch * course.period, total)):
        if step % course.period == 0:
            _restructure(method, optimizer)
            spent += course.period * _step_macs(course, model)
        # A method may choose the rate of its own parameters when it first sees the optimizer.
        peaks = peaks or [group["lr"] * rate for group in optimizer.param_groups]
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * schedule(progress(step, total))
        optimizer.zero_grad()
        _loss(course, model, batch, methods, derive(seed, "step", first_epoch, step)).backward()
        if course.clip_norm is not None:
            nn.utils.clip_grad_norm_(own, course.clip_norm)
        optimizer.step()
        for each in methods:
            each.step()
    return spent


def _restructure(method: object, optimizer: torch.optim.Optimizer) -> None:
    if isinstance(method, Restructuring):
        method.restructure(optimizer)


def _step_macs(course: Course, model: nn.Module) -> int:
    return (1 + BACKWARD) * course.batch_size * macs(model, course.task.example_inputs)


def _own_parameters(model: nn.Module, methods: Sequence[Method]) -> list[nn.Parameter]:
    groups = [group for method in methods for group in method.parameter_groups()]
    claimed = {id(parameter) for group in groups for parameter in group["params"]}
    return [parameter for parameter in model.parameters() if id(parameter) not in claimed]


def _stream(course: Course, seed: int, start: int, count: int) -> Iterator[Batch]:
    """So many batches of the seed's order of the data, from a given one on."""
    number, within = divmod(start, course.steps_per_pass)
    while count > 0:
        order = batches(
            course.task.train,
            batch_size=course.batch_size,
            seed=seed,
            epoch=number,
            drop_last=True,
            start=within,
        )
        for batch, _ in islice(order, count):
            yield batch
            count -= 1
        number, within = number + 1, 0


def _loss(
    course: Course, model: nn.Module, batch: Batch, methods: Sequence[Method], seed: int
) -> Tensor:
    """The loss with the methods' penalties; noise and dropout depend on the seed alone."""
    task = course.task
    noise = torch.Generator().manual_seed(seed)
    if task.augment is not None:
        batch = task.augment(batch, noise)
    with torch.random.fork_rng(devices=[]):
        seed_torch(seed, torch.device("cpu"))
        loss = task.objective.loss(model, batch, noise)
    for method in methods:
        loss = loss + method.penalty()
    return loss


def dense_training_macs(course: Course) -> int:
    """What the course's training of the full network takes, as ``fit`` counts it."""
    return course.epochs * course.period * _step_macs(course, build(course, 0))


@torch.no_grad()
def score(course: Course, model: nn.Module) -> float:
    """The task's headline measure of a network on the validation samples."""
    task, taken = course.task, 0
    sums: dict[str, float] = {}
    noise = torch.Generator().manual_seed(0)
    with evaluated(model):
        for part in torch.arange(len(task.validation)).split(SCORED_AT_ONCE):
            found = task.objective.evaluate(model, task.validation.gather(part), noise)
            for name, value in found.items():
                sums[name] = sums.get(name, 0.0) + len(part) * value.item()
            taken += len(part)
    means = {name: total / taken for name, total in sums.items()}
    return task.objective.summarise(means)[task.headline]
