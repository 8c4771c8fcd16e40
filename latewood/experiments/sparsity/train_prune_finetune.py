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
from latewood.experiments.flop_counted_training import (
    TrainingSetting,
    build,
    fit_and_count,
    score,
)
from latewood.training.randomness import derive, seed_torch

__all__ = [
    "ScoreAndCost",
    "Size",
    "narrow_from_scratch",
    "score_and_cost",
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
class ScoreAndCost:
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


def score_and_cost(setting: TrainingSetting, model: nn.Module, training_macs: int) -> ScoreAndCost:
    """Measures a trained network."""
    inputs = setting.task.example_inputs
    return ScoreAndCost(
        score(setting, model), parameter_count(model), macs(model, inputs), training_macs
    )


def train_prune_finetune(
    setting: TrainingSetting,
    *,
    keep: float,
    measure: Size = "parameters",
    seed: int,
    dense: tuple[nn.Module, int] | None = None,
) -> ScoreAndCost:
    """Half of the epochs dense, then pruned to a budget, then the other half.

    Channels of smallest group L2 norm over all layers go, all at once; the classifier keeps its
    outputs.

    Args:
        setting: the training; its epochs are shared between the two halves.
        keep: the budget, as a share of the full network's size, in (0, 1).
        measure: of the size.
        seed: of the training.
        dense: a network trained for the first half and what that took; None trains it.

    Raises:
        WorkError: Torch-Pruning is not installed.
    """
    before = setting.epochs // 2
    if dense is None:
        model = build(setting, seed)
        dense = model, fit_and_count(setting, model, epochs=before, seed=seed)
    model, spent = dense
    small = prune_to(model, setting, keep=keep, measure=measure)
    spent += fit_and_count(
        setting,
        small,
        epochs=setting.epochs - before,
        seed=seed,
        rate=FINE_TUNING_RATE,
        first_epoch=before,
    )
    return score_and_cost(setting, small, spent)


def prune_to(
    model: nn.Module, setting: TrainingSetting, *, keep: float, measure: Size = "parameters"
) -> nn.Module:
    """A copy of a network, pruned by Torch-Pruning to the largest one within a budget.

    Args:
        model: left as it is.
        setting: for example inputs.
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
            setting.task.example_inputs,
            importance=peer.importance.GroupMagnitudeImportance(p=2),
            global_pruning=True,
            pruning_ratio=ratio,
            ignored_layers=outputs,
        ).step()
        return small

    return _largest_within(pruned, setting, measure, keep * size(setting, model, measure))


def narrow_from_scratch(
    setting: TrainingSetting, *, keep: float, measure: Size = "parameters", epochs: int, seed: int
) -> ScoreAndCost:
    """A network of that size from the start, all layers narrowed alike, trained plainly.

    Args:
        setting: the training.
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
            return setting.network(1 - ratio)

    full = size(setting, build(setting, seed), measure)
    model = _largest_within(narrowed, setting, measure, keep * full)
    return score_and_cost(setting, model, fit_and_count(setting, model, epochs=epochs, seed=seed))


def size(setting: TrainingSetting, model: nn.Module, measure: Size) -> int:
    """Parameters of a network, or multiply-accumulates of one sample."""
    if measure == "parameters":
        return parameter_count(model)
    return macs(model, setting.task.example_inputs)


def _largest_within(
    make: Callable[[float], nn.Module], setting: TrainingSetting, measure: Size, budget: float
) -> nn.Module:
    """The largest of the networks ``make(ratio)``, smaller for larger ratios, within a budget."""
    low, high = 0.0, 1.0
    best: nn.Module | None = None
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        model = make(middle)
        if size(setting, model, measure) <= budget:
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
