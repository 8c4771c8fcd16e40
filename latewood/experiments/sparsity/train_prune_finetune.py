"""The usual way to a small network, by Torch-Pruning, and one that is small from the start."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from latewood.errors import WorkError
from latewood.experiments.sparsity.counted import Course, build, fit, score
from latewood.training.measure import macs, parameter_count

__all__ = ["Outcome", "outcome", "prune_to", "slim_from_scratch", "train_prune_finetune"]

HALVINGS: Final = 20
"""Of the interval that the pruning ratio is searched in; one channel is far coarser."""

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
    course: Course, *, keep: float, seed: int, dense: tuple[nn.Module, int] | None = None
) -> Outcome:
    """Half of the epochs dense, then pruned to a budget of parameters, then the other half.

    Channels of smallest group L2 norm over all layers go, all at once; the classifier keeps its
    outputs.

    Args:
        course: the training; its epochs are shared between the two halves.
        keep: budget, as a share of the full network's parameters, in (0, 1).
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
    small = prune_to(model, course, budget=int(keep * parameter_count(model)))
    spent += fit(
        course,
        small,
        epochs=course.epochs - before,
        seed=seed,
        rate=FINE_TUNING_RATE,
        first_epoch=before,
    )
    return outcome(course, small, spent)


def prune_to(model: nn.Module, course: Course, *, budget: int) -> nn.Module:
    """A copy of a network, pruned by Torch-Pruning to the most parameters within a budget.

    Args:
        model: left as it is.
        course: for example inputs.
        budget: largest number of parameters.

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

    return _largest_within(pruned, budget)


def slim_from_scratch(
    course: Course, network: Callable[[float], nn.Module], *, keep: float, seed: int
) -> Outcome:
    """A network that is as small from the start, trained for all epochs.

    Args:
        course: the training.
        network: makes the network whose layers have that share of the full one's channels.
        keep: budget, as a share of the full network's parameters, in (0, 1).
        seed: of the training.
    """
    budget = int(keep * parameter_count(build(course, 0)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _largest_within(lambda ratio: network(1 - ratio), budget)
    return outcome(course, model, fit(course, model, epochs=course.epochs, seed=seed))


def _largest_within(made: Callable[[float], nn.Module], budget: int) -> nn.Module:
    """The largest of the networks ``made(ratio)``, smaller for larger ratios, within a budget."""
    low, high = 0.0, 1.0
    best: nn.Module | None = None
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        model = made(middle)
        if parameter_count(model) <= budget:
            best, high = model, middle
        else:
            low = middle
    if best is None:
        raise WorkError(f"budget: no ratio leads to a network of at most {budget} parameters")
    return best


def _torch_pruning() -> Any:
    try:
        return importlib.import_module("torch_pruning")
    except ImportError as error:
        raise WorkError(
            "Torch-Pruning, which this compares with, is not installed: pip install torch-pruning"
        ) from error
