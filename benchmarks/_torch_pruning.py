"""Torch-Pruning on an architecture: its graph, its groups, and half of the channels removed."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks._architecture_checks import Outcome, attempt
from latewood.core.coupling import ChannelPlan
from latewood.core.coupling.trace import outputs_of, run_model

__all__ = ["prune_half"]


def prune_half(
    model: nn.Module, inputs: Any, plan: ChannelPlan | None, limit: float
) -> tuple[Outcome, Outcome]:
    """Builds its dependency graph and prunes half of every group, as its own examples do.

    It is told what it cannot know: which layers make the model's outputs, and is given a loss in
    which all outputs meet.

    Args:
        model: in evaluation mode; it is changed.
        inputs: what it is called with.
        plan: ours, for the layers that make the outputs.
        limit: seconds for the graph, and again for the rest.

    Returns:
        How the graph ended, and how the pruned model ran: "ok", "error" if something raised, or
        "wrong" if the outputs have another shape.
    """
    pruning = importlib.import_module("torch_pruning")
    with torch.no_grad():
        exact = [output.shape for output in outputs_of(run_model(model, inputs))]
    pruners = []

    def build() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pruners.append(
                pruning.pruner.BasePruner(
                    model,
                    inputs,
                    importance=pruning.importance.MagnitudeImportance(p=2),
                    pruning_ratio=0.5,
                    ignored_layers=[*_output_layers(model, plan)],
                    output_transform=_one_loss,
                )
            )

    built = attempt(build, limit)
    if built.word != "ok":
        return built, Outcome("-")

    def prune() -> None:
        pruners[0].step()
        with torch.no_grad():
            shapes = [output.shape for output in outputs_of(run_model(model, inputs))]
        if shapes != exact:
            raise AssertionError("outputs of another shape")

    pruned = attempt(prune, limit)
    if pruned.reason.startswith("AssertionError: outputs"):
        pruned = Outcome("wrong", "outputs of another shape", pruned.seconds)
    return built, pruned


def _one_loss(outputs: Any) -> Tensor:
    floating = [output for output in outputs_of(outputs) if output.is_floating_point()]
    return torch.stack([output.sum() for output in floating]).sum()


def _output_layers(model: nn.Module, plan: ChannelPlan | None) -> Iterator[nn.Module]:
    for group in plan or ():
        if any(barrier.kind == "output" for barrier in group.barriers):
            for member in group.having("producer"):
                yield model.get_submodule(member.tensor.rpartition(".")[0])
