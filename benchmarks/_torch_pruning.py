"""Torch-Pruning on an architecture: its graph, its groups, and half of the channels removed."""

from __future__ import annotations

import copy
import importlib
import warnings
from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import Tensor, nn

from benchmarks._architecture_checks import (
    Outcome,
    attempt,
    float_outputs,
    in_double,
    require_equal,
    require_like,
)
from latewood.core.coupling import ChannelPlan
from latewood.core.coupling.trace import outputs_of

__all__ = ["prune_half"]

_CONVOLUTIONS: Final = (nn.modules.conv._ConvNd,)
_FOLLOWED: Final = (nn.Linear, *_CONVOLUTIONS, nn.modules.batchnorm._BatchNorm, nn.PReLU)
"""Layers whose unread channels can go without a trace; in a layer norm they leave one."""


def prune_half(
    model: nn.Module, inputs: Any, plan: ChannelPlan | None, limit: float
) -> tuple[Outcome, Outcome]:
    """Builds its dependency graph and prunes half of every group, as its own examples do.

    It is told what it cannot know: which layers make the model's outputs, and is given a loss in
    which all outputs meet; nothing about heads, as we are told nothing. Everything goes first.
    Then, on a copy, only groups without layer norms and grouped convolutions: it must compute what
    the model does with zeros for all that reads them.

    Args:
        model: in evaluation mode; it stays as it is.
        inputs: what it is called with.
        plan: ours, for the layers that make the outputs.
        limit: seconds for the graph, and again for the rest.

    Returns:
        How the graph ended, and how the pruned model ran: "ok"; "error" if something raised;
        "wrong" if outputs have another shape or other values.
    """
    model, inputs, tolerance = in_double(copy.deepcopy(model), inputs)
    pruners: list[Any] = []
    built = attempt(lambda: pruners.append(_pruner(copy.deepcopy(model), inputs, plan)), limit)
    if built.word != "ok":
        return built, Outcome("-")

    def prune() -> None:
        exact = float_outputs(model, inputs)
        pruner = pruners[0]
        pruner.step()
        require_like(float_outputs(pruner.model, inputs), exact, "half of the channels")

    pruned = attempt(prune, limit)
    if pruned.word != "ok":
        return built, pruned

    def compare() -> None:
        zeroed = copy.deepcopy(model)
        smaller = _prune_followed(_pruner(copy.deepcopy(model), inputs, plan), zeroed)
        exact = float_outputs(zeroed, inputs)
        what = "unread channels removed"
        require_equal(float_outputs(smaller, inputs), exact, what, tolerance)

    compared = attempt(compare, limit)
    # What else goes wrong here may be the comparison's fault.
    return built, compared if compared.word == "wrong" else pruned


def _pruner(model: nn.Module, inputs: Any, plan: ChannelPlan | None) -> Any:
    pruning = importlib.import_module("torch_pruning")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pruning.pruner.BasePruner(
            model,
            inputs,
            importance=pruning.importance.MagnitudeImportance(p=2),
            pruning_ratio=0.5,
            ignored_layers=[*_output_layers(model, plan)],
            output_transform=_one_loss,
        )


def _prune_followed(pruner: Any, zeroed: nn.Module) -> nn.Module:
    """Prunes what can be compared, and zeroes in a copy of the model what reads it."""
    names = {module: name for name, module in pruner.model.named_modules()}
    there: dict[str, list[int]] = {}
    for group in pruner.step(interactive=True):
        targets = [item.dep.target.module for item in group]
        layers = [target for target in targets if type(target).__module__.startswith("torch.nn")]
        if not all(_is_followed(layer) for layer in layers):
            continue
        for item in group:
            layer = item.dep.target.module
            if _reads(layer) and pruner.DG.is_in_channel_pruning_fn(item.dep.handler):
                twin = zeroed.get_submodule(names[layer])
                axis = int(not getattr(twin, "transposed", False))
                left = there.setdefault(names[layer], [*range(twin.weight.shape[axis])])
                gone = [left[position] for position in item.idxs]
                there[names[layer]] = [position for position in left if position not in {*gone}]
                with torch.no_grad():
                    twin.weight.index_fill_(axis, torch.tensor(gone), 0)
        group.prune()
    pruned: nn.Module = pruner.model
    return pruned


def _is_followed(layer: nn.Module) -> bool:
    if isinstance(layer, _CONVOLUTIONS) and 1 < layer.groups < layer.in_channels:
        # Its channels go by their places within the groups, which may lie behind others.
        return False
    return isinstance(layer, _FOLLOWED)


def _reads(layer: nn.Module) -> bool:
    dense = isinstance(layer, _CONVOLUTIONS) and layer.groups == 1
    return dense or isinstance(layer, nn.Linear)


def _one_loss(outputs: Any) -> Tensor:
    floating = [output for output in outputs_of(outputs) if output.is_floating_point()]
    return torch.stack([output.sum() for output in floating]).sum()


def _output_layers(model: nn.Module, plan: ChannelPlan | None) -> Iterator[nn.Module]:
    for group in plan or ():
        if any(barrier.kind == "output" for barrier in group.barriers):
            for member in group.having("producer"):
                yield model.get_submodule(member.tensor.rpartition(".")[0])
