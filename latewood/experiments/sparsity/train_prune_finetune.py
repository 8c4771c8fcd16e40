"""The usual way to a small network, by Torch-Pruning, and one that is small from the start."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch import nn

from latewood.core.macs import macs
from latewood.core.measure import parameter_count
from latewood.errors import WorkError
from latewood.experiments.sparsity.flop_counted_training import Course, build, fit, score
from latewood.training.randomness import derive, seed_torch

__all__ = [
    "Outcome",
    "Size",
    "narrow_from_scratch",
    "outcome",
    "prune_to",
    "size",
    "train_prune_finetune",
]

Size = Literal["parameters", "macs"]

HALVINGS: Final = 12
"""Of the interval in which the pruning ratio is searched; one channel is coarser."""

FINE_TUNING_RATE: Final = 0.4
"""Peak learning rate of the fine-tuning over that of the training: 0.02 over 0.05."""


@dataclass(frozen=True)
class Outcome:
    """What a way to a small network led to, and what it took.

    Args:
        score: the task's headline measure.
        parameters: values in the parameters of the network.
        macs: multiply-accumulates of one forward pass on one sample.
        training_macs: those of the whole training.
    """

    score: float
    parameters: int
    macs: int
    training_macs: int


def outcome(course: Course, model: nn.Module, training_macs: int) -> Outcome:
    """Measures a trained network."""
    inputs = course.task.example_inputs
    return Outcome(score(course, model), parameter_count(model), macs(model, inputs), training_macs)


def train_prune_finetune(
    course: Course,
    *,
    keep: float,
    measure: Size = "parameters",
    seed: int,
    dense: tuple[nn.Module, int] | None = None,
) -> Outcome:
    """Half of the epochs dense, then pruned to a budget, then the other half.

    Channels of smallest group L2 norm over all layers go, all at once; the classifier keeps its
    outputs.

    Args:
        course: the training; its epochs are shared between the two halves.
        keep: the budget, as a share of the full network's size, in (0, 1).
        measure: of the size.
        seed: of the training.
        dense: a network trained for the first half and what that took; None trains it.

    Raises:
        WorkError: Torch-Pruning is not installed.
    """
    before = course.epochs // 2
    if dense is None:
        model = build(course, seed)
        dense = model, fit(course, model, epochs=before, seed=seed)
    model, spent = dense
    small = prune_to(model, course, keep=keep, measure=measure)
    spent += fit(
        course,
        small,
        epochs=course.epochs - before,
        seed=seed,
        rate=FINE_TUNING_RATE,
        first_epoch=before,
    )
    return outcome(course, small, spent)


def prune_to(
    model: nn.Module, course: Course, *, keep: float, measure: Size = "parameters"
) -> nn.Module:
    """A copy of a network, pruned by Torch-Pruning to the largest one within a budget.

    Args:
        model: left as it is.
        course: for example inputs.
        keep: the budget, as a share of this network's size, in (0, 1).
        measure: of the size.

    Raises:
        WorkError: Torch-Pruning is not installed, or prunes the network to no such size.
    """
    peer = _torch_pruning()

    def pruned(ratio: float) -> nn.Module:
        small = copy.deepcopy(model)
        outputs = [module for module in small.modules() if isinstance(module, nn.Linear)][-1:]
        peer.pruner.BasePruner(
            small,
            course.task.example_inputs,
            importance=peer.importance.GroupMagnitudeImportance(p=2),
            global_pruning=True,
            pruning_ratio=ratio,
            ignored_layers=outputs,
        ).step()
        return small

    return _largest_within(pruned, course, measure, keep * size(course, model, measure))


def narrow_from_scratch(
    course: Course, *, keep: float, measure: Size = "parameters", epochs: int, seed: int
) -> Outcome:
    """A network of that size from the start, all layers narrowed alike, trained plainly.

    Args:
        course: the training.
        keep: the budget, as a share of the full network's size, in (0, 1).
        measure: of the size.
        epochs: length of the training.
        seed: of the training.

    Raises:
        WorkError: no network is as small.
    """

    def narrowed(ratio: float) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            seed_torch(derive(seed, "initial weights"), torch.device("cpu"))
            return course.network(1 - ratio)

    full = size(course, build(course, seed), measure)
    model = _largest_within(narrowed, course, measure, keep * full)
    return outcome(course, model, fit(course, model, epochs=epochs, seed=seed))


def size(course: Course, model: nn.Module, measure: Size) -> int:
    """Parameters of a network, or multiply-accumulates of one sample."""
    if measure == "parameters":
        return parameter_count(model)
    return macs(model, course.task.example_inputs)


def _largest_within(
    made: Callable[[float], nn.Module], course: Course, measure: Size, budget: float
) -> nn.Module:
    """The largest of the networks ``made(ratio)``, smaller for larger ratios, within a budget."""
    low, high = 0.0, 1.0
    best: nn.Module | None = None
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        model = made(middle)
        if size(course, model, measure) <= budget:
            best, high = model, middle
        else:
            low = middle
    if best is None:
        raise WorkError(f"keep: no network has at most {budget:.0f} {measure}")
    return best


def _torch_pruning() -> Any:
    try:
        return importlib.import_module("torch_pruning")
    except ImportError as error:
        raise WorkError(
            "Torch-Pruning, which this compares with, is not installed: pip install torch-pruning"
        ) from error
