"""Numbers in a model's code that know where they come from: an attribute, a shape, or arithmetic.

While a model is traced, its modules' integer attributes and the shapes of its tensors are such
numbers. What the code makes of them then tells whether a size follows when channels come and go.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

__all__ = [
    "Attribute",
    "CodeNumber",
    "Extent",
    "attribute_of",
    "attributes_in",
    "code_numbers",
    "recomputed",
]


@dataclass(frozen=True)
class Attribute:
    """An integer attribute of a module.

    Args:
        module: qualified name of the module.
        name: of the attribute.
        value: of the attribute.
    """

    module: str
    name: str
    value: int


@dataclass(frozen=True, eq=False)
class Extent:
    """The size of a tensor's dimension.

    Args:
        labels: labels along it, (size,), or (0,) where all are alike.
        size: the size.
    """

    labels: Tensor
    size: int


@dataclass(frozen=True, eq=False)
class _Operation:
    """What arithmetic made of numbers."""

    function: Callable[[int, int], int]
    left: Origin
    right: Origin


Origin = int | Attribute | Extent | _Operation


class CodeNumber(int):
    """An integer that remembers its origin through integer arithmetic.

    Args:
        value: the integer.
        origin: an attribute of a module, the extent of a dimension, or an operation.
    """

    origin: Origin

    def __new__(cls, value: int, origin: Origin) -> CodeNumber:
        number = super().__new__(cls, value)
        number.origin = origin
        return number

    def __reduce__(self) -> tuple[Any, ...]:
        return int, (int(self),)

    def __copy__(self) -> int:
        return int(self)

    def __deepcopy__(self, _: Any) -> int:
        return int(self)


def _origin(number: int) -> Origin:
    return number.origin if isinstance(number, CodeNumber) else number


def _followed(name: str) -> None:
    function: Callable[[int, int], int] = getattr(operator, name)
    plain = getattr(int, f"__{name}__")
    turned = getattr(int, f"__r{name}__")

    def forward(self: CodeNumber, other: Any) -> Any:
        value = plain(self, other)
        if value is NotImplemented or isinstance(other, bool):
            return value
        return CodeNumber(value, _Operation(function, self.origin, _origin(other)))

    def backward(self: CodeNumber, other: Any) -> Any:
        value = turned(self, other)
        if value is NotImplemented or isinstance(other, bool):
            return value
        return CodeNumber(value, _Operation(function, _origin(other), self.origin))

    setattr(CodeNumber, f"__{name}__", forward)
    setattr(CodeNumber, f"__r{name}__", backward)


for _name in ("add", "sub", "mul", "floordiv", "mod"):
    _followed(_name)

_NOTHING: Final[Mapping[Attribute, int]] = {}


def recomputed(
    number: int, grown: Callable[[Tensor], int], attributes: Mapping[Attribute, int] = _NOTHING
) -> int | None:
    """What the code would make of a number if channels and attributes changed.

    Args:
        number: of the code, as it is now.
        grown: by how much labels along a dimension become more.
        attributes: new values of some attributes.

    Returns:
        The new number; None if the code would divide by zero.
    """

    def value(origin: Origin) -> int:
        if isinstance(origin, int):
            return int(origin)
        if isinstance(origin, Attribute):
            return attributes.get(origin, origin.value)
        if isinstance(origin, Extent):
            return origin.size + grown(origin.labels)
        return origin.function(value(origin.left), value(origin.right))

    try:
        return value(_origin(number))
    except ZeroDivisionError:
        return None


def attribute_of(number: int) -> Attribute | None:
    """The attribute that a number of the code is, if it is one without any arithmetic."""
    origin = _origin(number)
    return origin if isinstance(origin, Attribute) else None


def attributes_in(number: int) -> Iterator[Attribute]:
    """The attributes that a number of the code is made of."""
    waiting = [_origin(number)]
    while waiting:
        origin = waiting.pop()
        if isinstance(origin, _Operation):
            waiting += [origin.left, origin.right]
        elif isinstance(origin, Attribute):
            yield origin


@contextmanager
def code_numbers(model: nn.Module) -> Iterator[None]:
    """Makes the integer attributes of a model's modules code numbers, for a while."""
    found = [
        (module, attribute, value)
        for name, module in model.named_modules()
        if not isinstance(module, torch.jit.ScriptModule)
        for attribute, value in vars(module).items()
        if type(value) is int
    ]
    names = {id(module): name for name, module in model.named_modules()}
    for module, attribute, value in found:
        origin = Attribute(names[id(module)], attribute, value)
        vars(module)[attribute] = CodeNumber(value, origin)
    try:
        yield
    finally:
        for module in model.modules():
            for attribute, value in list(vars(module).items()):
                if type(value) is CodeNumber:
                    vars(module)[attribute] = int(value)
