"""Keeps the compiled form of a packed network for each shape of its inputs, as long as it holds."""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor, nn

from latewood.errors import RequestError
from latewood.kernels.dispatch import tensors_are_virtual
from latewood.kernels.mixed_products.self_test import sound_native
from latewood.precision.native_network import NativeNetwork
from latewood.precision.network_compilation import compile_network
from latewood.precision.packed_graph import NetworkGraph

__all__ = ["NetworkRunner"]

_NATIVE: Final = "one native call"
_MOST_SHAPES: Final = 8


class NetworkRunner:
    """Networks by shape of the input, made anew when a tensor of theirs was replaced or written."""

    def __init__(self) -> None:
        self._made: dict[tuple[int, ...], NativeNetwork | str] = {}
        self._module: Any = None
        self._places: list[tuple[dict[str, Any], str]] = []
        self._tensors: list[Tensor] = []
        self._versions: list[int] = []
        self._forms: list[bool] = []

    def run(
        self, graph: NetworkGraph, network: nn.Module, inputs: tuple[Any, ...]
    ) -> tuple[Tensor | None, str]:
        """The outputs if compiled code can give them, and how they come about.

        Args:
            graph: of the packed model.
            network: made of the graph; it holds the graph's tensors.
            inputs: of the network.

        Raises:
            RequestError: NaN where codes are formed.
        """
        if tensors_are_virtual():
            return None, _one_by_one("its tensors are traced or transformed")
        module = sound_native()
        if module is None:
            return None, _one_by_one("there are no compiled kernels, or these failed their test")
        if len(inputs) != 1 or not isinstance(inputs[0], Tensor):
            return None, _one_by_one("it takes more than one tensor")
        if any(layer._forward_hooks or layer._forward_pre_hooks for layer in graph.layers.values()):
            return None, _one_by_one("a layer has hooks")
        (given,) = inputs
        if module is not self._module or not self._current(graph):
            self._mark(graph, network)
            self._module = module
        shape = tuple(given.shape[1:])
        made = self._made.get(shape)
        if made is None:
            if len(self._made) >= _MOST_SHAPES:
                self._made.pop(next(iter(self._made)), None)  # another thread may be first
            made = self._made[shape] = _made(module, _as_held(graph, network), shape)
        if isinstance(made, str):
            return None, _one_by_one(made)
        reason = made.misfit(given)
        if reason is not None:
            return None, _one_by_one(reason)
        return made.run(given), _NATIVE

    def _current(self, graph: NetworkGraph) -> bool:
        tensors = [held.get(name) for held, name in self._places]
        return (
            all(map(operator.is_, tensors, self._tensors))
            and [tensor._version for tensor in self._tensors] == self._versions
            and [layer.quantises_inputs for layer in graph.layers.values()] == self._forms
        )

    def _mark(self, graph: NetworkGraph, network: nn.Module) -> None:
        """Notes which tensors the networks are made of."""
        self._made.clear()
        modules = [*graph.layers.values(), network]
        self._places = [
            (module._buffers, name)
            for module in modules
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
        for held, name in self._places:
            if held[name].is_inference():
                # Such a tensor does not count what is written to it.
                with torch.inference_mode(False):
                    held[name] = held[name].clone()
        self._tensors = [held[name] for held, name in self._places]
        self._versions = [tensor._version for tensor in self._tensors]
        self._forms = [layer.quantises_inputs for layer in graph.layers.values()]

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        NetworkRunner.__init__(self)


def _as_held(graph: NetworkGraph, network: nn.Module) -> NetworkGraph:
    """The graph with the tensors that the interpreter reads, which may have been replaced."""
    held = {name: network._buffers[f"tensor_{k}"] for k, name in enumerate(graph.tensors)}
    tensors = {name: tensor for name, tensor in held.items() if tensor is not None}
    return replace(graph, tensors=tensors)


def _made(module: Any, graph: NetworkGraph, shape: tuple[int, ...]) -> NativeNetwork | str:
    with torch.inference_mode(False), torch.no_grad():
        try:
            compiled = compile_network(graph, shape)
        except RequestError as error:
            return str(error)
        return compiled if isinstance(compiled, str) else NativeNetwork(module, compiled)


def _one_by_one(reason: str) -> str:
    return f"operation by operation: {reason}"
