"""One operation of a run under watch, as the rules see it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import torch
from torch import Tensor, nn

from latewood.core.coupling.code_numbers import CodeNumber
from latewood.core.coupling.labels import Labels

__all__ = ["Call", "Operation", "Result", "Rule", "argument_names", "tensors_in"]

_FUNCTIONAL: Final = {
    "batch_norm": ("input", "running_mean", "running_var", "weight", "bias", "training"),
    "instance_norm": ("input", "running_mean", "running_var", "weight", "bias"),
    "embedding": ("input", "weight", "padding_idx", "max_norm"),
    "rms_norm": ("input", "normalized_shape", "weight"),
}
"""Order of the arguments in ``torch.nn.functional``."""
_BARE: Final = {
    torch.batch_norm: ("input", "weight", "bias", "running_mean", "running_var", "training"),
    torch.instance_norm: ("input", "weight", "bias", "running_mean", "running_var"),
    torch.embedding: ("weight", "input"),
}
"""Order of the arguments of functions that ``torch`` itself has under the same name."""
_SPELLED: Final = {torch.embedding: {"input": "indices"}}

Result = Tensor | Sequence[Tensor | None] | None
"""Labels of an operation's output or outputs; None where no element belongs to a channel."""


@dataclass(frozen=True)
class Operation:
    """An operation of a run.

    Args:
        function: what is called.
        name: its name without underscores at the ends.
        positional: its positional arguments.
        named: its keyword arguments.
        modules: names and modules being called, outermost first.
        output: what it returned; None before.
        changed: the tensors among its arguments whose values it changed in place.
    """

    function: Callable[..., Any]
    name: str
    positional: tuple[Any, ...]
    named: dict[str, Any]
    modules: tuple[tuple[str, nn.Module], ...] = ()
    output: Any = None
    changed: tuple[Tensor, ...] = ()

    @cached_property
    def tensors(self) -> list[Tensor]:
        """The tensors among its arguments."""
        return list(tensors_in((self.positional, self.named)))

    @property
    def in_place(self) -> bool:
        """Whether it writes its result over its first argument."""
        name = getattr(self.function, "__name__", "")
        return name.startswith("__i") or (name.endswith("_") and not name.endswith("__"))

    @property
    def where(self) -> str:
        """The operation and its layer, in words."""
        layer = self.modules[-1][0] if self.modules else ""
        return f"{self.name} in {layer or 'the model'}"

    def arguments(self, *names: str) -> tuple[Any, ...]:
        """The arguments of some names, in the signature's order; None where absent."""
        return tuple(
            self.positional[position] if position < len(self.positional) else self.named.get(name)
            for position, name in enumerate(names)
        )

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """One argument by position or name."""
        if position < len(self.positional):
            return self.positional[position]
        return self.named.get(name, default)

    def split_first(self, name: str = "input") -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
        """The first argument, and the others by position and by name.

        Args:
            name: of the first argument where it is given by name.
        """
        if self.positional:
            return self.positional[0], self.positional[1:], self.named
        others = {key: value for key, value in self.named.items() if key != name}
        return self.named[name], (), others


@dataclass(frozen=True, kw_only=True)
class Call(Operation):
    """An operation that ran, with the labels of what it was given.

    Args:
        labels: the labels known so far; rules add to them.
    """

    labels: Labels

    @classmethod
    def of(cls, operation: Operation, labels: Labels) -> Call:
        """An operation with the labels of what it was given."""
        call = cls(
            operation.function,
            operation.name,
            operation.positional,
            operation.named,
            operation.modules,
            operation.output,
            operation.changed,
            labels=labels,
        )
        # Several look at them, and arguments may be deep.
        vars(call)["tensors"] = operation.tensors
        return call

    def size(self, tensor: Tensor, dim: int) -> int:
        """The size of a dimension, as a number of the code that knows where it comes from."""
        return CodeNumber(tensor.shape[dim], self.labels.extent(tensor, dim))

    def unknown(self) -> Result:
        """Bars every channel that goes in: a rule for this use of the operation is missing."""
        reason = f"no rule for {self.where}"
        for tensor in self.tensors:
            if self.labels.source(tensor) is None:
                self.labels.bar(self.labels.of(tensor), "unknown", reason)
            self.labels.bar_all_axes(tensor, "unknown", reason)
        return None


Rule = Callable[[Call], Result]


def argument_names(
    function: Callable[..., Any], name: str, positional: tuple[Any, ...], named: dict[str, Any]
) -> dict[str, Any]:
    """The arguments of a call by their names in ``torch.nn.functional``.

    ``torch`` has functions of the same names with their arguments in another order.

    Args:
        function: what was called.
        name: its name.
        positional: its positional arguments.
        named: its keyword arguments.
    """
    order = _BARE.get(function) or _FUNCTIONAL[name]
    given = dict(zip(order, positional, strict=False)) | named
    for ours, theirs in _SPELLED.get(function, {}).items():
        if theirs in given:
            given[ours] = given.pop(theirs)
    return given


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists, mappings and dataclasses."""
    tensors: list[Tensor] = []
    _gather(tree, tensors)
    return iter(tensors)


def _gather(tree: Any, tensors: list[Tensor]) -> None:
    if isinstance(tree, Tensor):
        tensors.append(tree)
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            _gather(item, tensors)
    elif tree is None or isinstance(tree, (int, float, str)):
        return
    elif isinstance(tree, Mapping):
        for item in tree.values():
            _gather(item, tensors)
    elif dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        for field in dataclasses.fields(tree):
            _gather(getattr(tree, field.name), tensors)
