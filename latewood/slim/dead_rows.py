"""Filters whose only reader is a batch norm that multiplies them with zero."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from latewood.core.coupling.trace import layer_tensors, outputs_of, run_model
from latewood.core.coupling.traced_call import argument_names, tensors_in
from latewood.core.modes import evaluated, unfused
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
    with evaluated(model), unfused(), torch.no_grad(), parametrize.cached():
        trace = _ReaderTrace({id(getattr(*owner)): name for name, owner in owners.items()})
        with trace:
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


class _ReaderTrace(TorchFunctionMode):
    """Notes which operations read what each weight makes."""

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        self.uses: dict[str, int] = {}
        self.readers: dict[str, tuple[str | None, list[str | None]]] = {}
        self._names = names
        self._makers: dict[int, tuple[Tensor, str]] = {}

    def read(self, tensor: Tensor, norm: str | None) -> None:
        """Notes a reader of a tensor: the weight of a norm, or another (None)."""
        if id(tensor) in self._makers:
            self.readers[self._makers[id(tensor)][1]][1].append(norm)

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        named = kwargs or {}
        output = function(*args, **named)
        name = getattr(function, "__name__", "").strip("_")
        result = next(tensors_in(output), None)
        if result is None and name != "setitem":
            # Asked for a shape or a type.
            return output
        norm = self._norm(function, name, args, named)
        for position, operand in enumerate(tensors_in((args, named))):
            if id(operand) in self._names:
                used = self._names[id(operand)]
                self.uses[used] = self.uses.get(used, 0) + 1
            self.read(operand, norm if position == 0 else None)
        if name in _MAKERS and result is not None and len(args) > 1:
            weight = self._names.get(id(args[1]))
            bias = args[2] if len(args) > 2 else named.get("bias")
            if weight is not None:
                self._makers[id(result)] = (result, weight)
                self.readers.setdefault(weight, (self._names.get(id(bias)), []))
        return output

    def _norm(
        self, function: Callable[..., Any], name: str, args: tuple[Any, ...], named: dict[str, Any]
    ) -> str | None:
        if name != "batch_norm":
            return None
        given = argument_names(function, name, args, named)
        if given.get("training", False) or given.get("running_mean") is None:
            return None
        return self._names.get(id(given.get("weight")))
