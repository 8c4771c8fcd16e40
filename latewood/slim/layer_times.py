"""The layers that a model spends its time in: what they are given, and how long they take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from latewood.core.coupling.trace import run_model
from latewood.core.modes import evaluated
from latewood.core.module_calls import ModuleCall, module_calls
from latewood.core.timing import least_times
from latewood.slim.comparison import Examples, mapped
from latewood.slim.csr_linear import CsrLinear

__all__ = ["CallArguments", "calls_of", "given_to", "heavy_layers", "layer_times"]

CallArguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of a call."""

_HEAVY: Final = (nn.Linear, CsrLinear, nn.modules.conv._ConvNd, nn.RNNBase)


def heavy_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The linear, convolutional and recurrent layers of a model by name."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, _HEAVY)}


def calls_of(
    model: nn.Module, layers: Mapping[str, nn.Module], example_inputs: Examples
) -> dict[str, list[CallArguments]]:
    """What each layer is given in a run, call by call.

    Args:
        model: a model, run in evaluation mode.
        layers: layers of it by name.
        example_inputs: what it is called with.

    Returns:
        Copies of the arguments, for the layers that were called.
    """
    calls: dict[str, list[CallArguments]] = {}

    def note(call: ModuleCall) -> None:
        given = mapped((call.positional, call.named), _copy)
        calls.setdefault(call.name, []).append(given)

    with evaluated(model), torch.no_grad(), module_calls(layers, note):
        run_model(model, example_inputs)
    return calls


def given_to(
    model: nn.Module, layers: Mapping[str, nn.Module], example_inputs: Examples
) -> dict[str, CallArguments]:
    """What each layer is given the last time that a run calls it (``calls_of``)."""
    return {name: calls[-1] for name, calls in calls_of(model, layers, example_inputs).items()}


def layer_times(
    models: Mapping[str, nn.Module], example_inputs: Examples
) -> dict[str, dict[str, float]]:
    """The least times of the layers of several forms of a model, each layer's forms in turns.

    Args:
        models: forms of one model, whose layers have the same names where both have them.
        example_inputs: what they are called with.

    Returns:
        For each layer that runs, microseconds by form.
    """
    calls: dict[str, dict[str, Callable[[], object]]] = {}
    device = torch.device("cpu")
    for form, model in models.items():
        layers = heavy_layers(model)
        for name, (inputs, named) in given_to(model, layers, example_inputs).items():
            calls.setdefault(name, {})[form] = partial(layers[name], *inputs, **named)
            device = next((weight.device for weight in layers[name].parameters()), device)
    return {name: least_times(forms, device) for name, forms in calls.items()}


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()
