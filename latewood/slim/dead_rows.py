"""Filters whose only reader is a batch norm that multiplies them with zero."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from latewood.core.coupling.trace import layer_tensors, outputs_of, prepared, run_model
from latewood.core.coupling.traced_call import Operation, argument_names, tensors_in
from latewood.core.coupling.watched_run import Watcher, watched
from latewood.core.selection import stored_tensor
from latewood.core.transforms import transformations
from latewood.slim.comparison import Examples

__all__ = ["clear_dead_rows"]

_MAKERS: Final = ("linear", "conv1d", "conv2d", "conv3d")


def clear_dead_rows(model: nn.Module, example_inputs: Examples) -> None:
    """Sets the rows of weights to zero that a batch norm in evaluation mode multiplies with zero.

    y = 0 * (w x - mean) / std + bias, whatever w is. With the rows, what they alone read goes too.

    Args:
        model: changed in place, not in what it computes in evaluation mode.
        example_inputs: what it is called with.
    """
    owners = dict(layer_tensors(model))
    if not any(_may_be_dead(name, getattr(*owner)) for name, owner in owners.items()):
        return
    with prepared(model) as tensors:
        trace = _Readers(tensors)
        with watched(model, trace):
            outputs = run_model(model, example_inputs)
        for output in outputs_of(outputs):
            trace.read(output, None)
    for weight, (bias, norms) in trace.readers.items():
        plain = not any(transformations(*owners[name]) for name in (weight, bias) if name)
        if len(norms) == 1 and norms[0] is not None and trace.uses[weight] == 1 and plain:
            dead = getattr(*owners[norms[0]]) == 0
            with torch.no_grad():
                stored_tensor(*owners[weight])[dead] = 0
                if bias is not None and trace.uses[bias] == 1:
                    stored_tensor(*owners[bias])[dead] = 0


def _may_be_dead(name: str, tensor: Tensor) -> bool:
    """Whether a tensor can be a norm's weight with zeros in it."""
    added = name.endswith(("bias", "running_mean"))
    return tensor.ndim == 1 and not added and bool((tensor == 0).any())


class _Readers(Watcher):
    """Notes which operations read what each weight makes.

    Args:
        tensors: what the layers compute with, by name.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.uses: dict[str, int] = {}
        self.readers: dict[str, tuple[str | None, list[str | None]]] = {}
        self._names = {id(tensor): name for name, tensor in tensors.items()}
        self._makers: dict[int, tuple[Tensor, str]] = {}

    def read(self, tensor: Tensor, norm: str | None) -> None:
        """Notes a reader of a tensor: the weight of a norm, or another (None)."""
        if id(tensor) in self._makers:
            self.readers[self._makers[id(tensor)][1]][1].append(norm)

    def after(self, operation: Operation) -> Any:
        """Notes what an operation reads, and whether a weight makes its output."""
        output = operation.output
        result = next(tensors_in(output), None)
        if result is None and operation.name != "setitem":
            # Asked for a shape or a type.
            return output
        norm = self._norm(operation)
        for position, operand in enumerate(operation.tensors):
            used = self._names.get(id(operand))
            if used is not None:
                self.uses[used] = self.uses.get(used, 0) + 1
            self.read(operand, norm if position == 0 else None)
        if operation.name in _MAKERS and result is not None and len(operation.positional) > 1:
            weight = self._names.get(id(operation.positional[1]))
            if weight is not None:
                bias = self._names.get(id(operation.argument(2, "bias")))
                self._makers[id(result)] = (result, weight)
                self.readers.setdefault(weight, (bias, []))
        return output

    def _norm(self, operation: Operation) -> str | None:
        if operation.name != "batch_norm":
            return None
        given = argument_names(
            operation.function, operation.name, operation.positional, operation.named
        )
        if given.get("training", False) or given.get("running_mean") is None:
            return None
        return self._names.get(id(given.get("weight")))
