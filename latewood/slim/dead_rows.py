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
    places = dict(layer_tensors(model))
    with evaluated(model), unfused(), torch.no_grad(), parametrize.cached():
        names = {id(getattr(*place)): name for name, place in places.items()}
        watcher = _Readers(names)
        with watcher:
            outputs = run_model(model, example_inputs)
        for output in outputs_of(outputs):
            watcher.read(output, None)
    for weight, (bias, norms) in watcher.found.items():
        plain = not any(transformations(*places[each]) for each in (weight, bias) if each)
        if len(norms) == 1 and norms[0] is not None and watcher.uses[weight] == 1 and plain:
            dead = getattr(*places[norms[0]]) == 0
            with torch.no_grad():
                stored_tensor(*places[weight])[dead] = 0
                if bias is not None and watcher.uses[bias] == 1:
                    stored_tensor(*places[bias])[dead] = 0


class _Readers(TorchFunctionMode):
    """Notes which operations read what each weight makes."""

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        self.uses: dict[str, int] = {}
        self.found: dict[str, tuple[str | None, list[str | None]]] = {}
        self._names = names
        self._made: dict[int, tuple[Tensor, str]] = {}

    def read(self, tensor: Tensor, norm: str | None) -> None:
        """Notes a reader of a tensor: the weight of a norm, or another (None)."""
        if id(tensor) in self._made:
            self.found[self._made[id(tensor)][1]][1].append(norm)

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
        made = next(tensors_in(output), None)
        if made is None and name != "setitem":
            # Asked for a shape or a type.
            return output
        norm = self._norm(function, name, args, named)
        for position, each in enumerate(tensors_in((args, named))):
            if id(each) in self._names:
                used = self._names[id(each)]
                self.uses[used] = self.uses.get(used, 0) + 1
            self.read(each, norm if position == 0 else None)
        if name in _MAKERS and made is not None and len(args) > 1:
            weight = self._names.get(id(args[1]))
            bias = args[2] if len(args) > 2 else named.get("bias")
            if weight is not None:
                self._made[id(made)] = (made, weight)
                self.found.setdefault(weight, (self._names.get(id(bias)), []))
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
