"""Which weights of a model make its output: what interventions on its layers leave alone."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from latewood.core.coupling import trace_channels
from latewood.core.coupling.trace import layer_tensors
from latewood.core.selection import Selected, shared_with_embeddings, stored_tensor
from latewood.spectra.layer_stages import runs_as_registered
from latewood.spectra.matrices.weights import spectral_parameters, unwrapped

__all__ = ["ExampleInputs", "output_heads"]

ExampleInputs = Tensor | Sequence[Any] | dict[str, Any]
"""What a model is called with: see ``core.coupling.trace_channels``."""


def output_heads(
    model: nn.Module, example_inputs: ExampleInputs | None = None, *, stacklevel: int = 1
) -> list[Selected]:
    """The weights whose output is the model's and which no other weight reads.

    With an example the model is run once: all such weights are found, one that is tied to an
    embedding among them; none for a model that returns its residual stream. Without one, it is the
    layer that a model of transformers calls its output embedding, else a weight that a head shares
    with an embedding, else the last one. The last one is certain for ``nn.Sequential``; for other
    models a warning names what was taken.

    Args:
        model: any module.
        example_inputs: what the model is called with.
        stacklevel: of the warning, as in ``warnings.warn``.

    Raises:
        RequestError: the example does not reach any weight.
    """
    weights = spectral_parameters(model)
    if example_inputs is not None:
        places = dict(layer_tensors(model))
        layers = trace_channels(model, example_inputs).layers
        stored = {
            id(stored_tensor(*places[name]))
            for name, layer in layers.items()
            if any(use.role == "output" for use in layer.uses)
        }
        return [weight for weight in weights if id(weight.stored) in stored]
    if heads := _named(model, weights):
        return heads
    last = weights[-1]
    if not runs_as_registered(unwrapped(model)):
        warnings.warn(
            f"output head: taken to be {last.name}, the last layer that is registered, as there "
            "are no example_inputs to run the model on",
            stacklevel=stacklevel + 1,
        )
    return [last]


def _named(model: nn.Module, weights: Sequence[Selected]) -> list[Selected]:
    """The head that the model itself names, or the one that it shares with an embedding."""
    ask = getattr(unwrapped(model), "get_output_embeddings", None)
    head = ask() if callable(ask) else None
    own = [id(parameter) for parameter in head.parameters()] if isinstance(head, nn.Module) else []
    if named := [weight for weight in weights if id(weight.stored) in own]:
        return named
    shared = shared_with_embeddings(model)
    stored = {id(model.get_parameter(name)) for name in shared if name in _parameters(model)}
    return [weight for weight in weights if id(weight.stored) in stored]


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return dict(model.named_parameters(remove_duplicate=False))
