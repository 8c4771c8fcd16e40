"""Numbers in a model's code that know where they come from: an attribute, a shape, or arithmetic.

While a model is traced, its modules' integer attributes and the shapes of its tensors are such
numbers. What the code makes of them then tells whether a size follows when channels come and go.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

__all__ = [
    "Attribute",
    "CodeNumber",
    "Extent",
    "NumberUse",
    "attribute_of",
    "code_numbers",
    "counts_entries",
    "divided_extent",
    "origins",
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


@dataclass(frozen=True, eq=False)
class NumberUse:
    """What the code did with a number, beside integer arithmetic and giving it to operations.

    Args:
        numbers: the number, or the two that were compared.
        comparison: of the two; None where the code took the number's value, as a float say.
    """

    numbers: tuple[int, ...]
    comparison: Callable[[Any, Any], bool] | None = None

    @property
    def agree(self) -> bool:
        """Whether two numbers were asked whether they are equal, and are."""
        asks = self.comparison in (operator.eq, operator.ne)
        return asks and int(self.numbers[0]) == int(self.numbers[1])


_USED: ContextVar[Callable[[NumberUse], None] | None] = ContextVar("_USED", default=None)
"""Who is told of uses; None where nobody is."""


def _note(number: CodeNumber, other: Any = None, comparison: Any = None) -> None:
    told = _USED.get()
    if told is None or (comparison is not None and _is_check_of_torch(number, other)):
        return
    told(NumberUse((number,) if comparison is None else (number, other), comparison))


def _is_check_of_torch(number: CodeNumber, other: int) -> bool:
    """Whether torch's own layers compare: sizes that change with them, or ways to go as fast.

    Only ``nn.Transformer`` keeps a width that no tensor of its own shows.
    """
    asked_in: str = sys._getframe(3).f_globals.get("__name__", "")
    if not asked_in.startswith("torch.nn.modules."):
        return False
    return not (asked_in.endswith(".transformer") and type(other) is CodeNumber)


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
        return made(self, other, plain(self, other), self, other)

    def backward(self: CodeNumber, other: Any) -> Any:
        return made(self, other, turned(self, other), other, self)

    def made(self: CodeNumber, other: Any, value: Any, left: Any, right: Any) -> Any:
        if value is NotImplemented:
            if isinstance(other, float):
                _note(self)
            return value
        if isinstance(other, bool):
            return value
        return CodeNumber(value, _Operation(function, _origin(left), _origin(right)))

    setattr(CodeNumber, f"__{name}__", forward)
    setattr(CodeNumber, f"__r{name}__", backward)


for _name in ("add", "sub", "mul", "floordiv", "mod", "lshift", "rshift"):
    _followed(_name)


def _valued(name: str) -> None:
    """What leaves the integers that know their origin."""
    plain = getattr(int, f"__{name}__")

    def valued(self: CodeNumber, *others: Any) -> Any:
        _note(self)
        for other in others:
            if type(other) is CodeNumber:
                _note(other)
        return plain(self, *others)

    setattr(CodeNumber, f"__{name}__", valued)


for _name in ("float", "int", "truediv", "rtruediv", "pow", "rpow"):
    _valued(_name)


def _compared(name: str) -> None:
    function: Callable[[Any, Any], bool] = getattr(operator, name)
    plain = getattr(int, f"__{name}__")

    def compared(self: CodeNumber, other: Any) -> Any:
        if isinstance(other, float):
            _note(self)
        elif isinstance(other, int) and not isinstance(other, bool):
            _note(self, other, function)
        return plain(self, other)

    setattr(CodeNumber, f"__{name}__", compared)


for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    _compared(_name)
# A class that compares in its own way has none unless it says so.
CodeNumber.__hash__ = int.__hash__  # type: ignore[method-assign]

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


def divided_extent(number: int) -> tuple[Extent, int] | None:
    """The extent and the divisor of which a number of the code is the remainder, if it is one."""
    origin = _origin(number)
    if not isinstance(origin, _Operation) or origin.function is not operator.mod:
        return None
    if isinstance(origin.left, Extent) and type(origin.right) is int and origin.right > 0:
        return origin.left, origin.right
    return None


def counts_entries(number: int) -> bool:
    """Whether a number of the code is the size of a dimension, or of several multiplied."""
    waiting = [_origin(number)]
    while waiting:
        origin = waiting.pop()
        if isinstance(origin, _Operation) and origin.function is operator.mul:
            waiting += [origin.left, origin.right]
        elif not isinstance(origin, Extent) and origin != 1:
            return False
    return isinstance(number, CodeNumber)


def origins(number: int) -> Iterator[Attribute | Extent]:
    """The attributes and extents that a number of the code is made of."""
    waiting = [_origin(number)]
    while waiting:
        origin = waiting.pop()
        if isinstance(origin, _Operation):
            waiting += [origin.left, origin.right]
        elif not isinstance(origin, int):
            yield origin


@contextmanager
def code_numbers(model: nn.Module, used: Callable[[NumberUse], None]) -> Iterator[None]:
    """Makes the integer attributes of a model's modules code numbers, for a while.

    Args:
        model: any module.
        used: is told what the code does with code numbers.
    """
    modules = dict(model.named_modules())
    for name, module in modules.items():
        if not isinstance(module, torch.jit.ScriptModule):
            attributes = module.__dict__
            for attribute in [key for key, value in attributes.items() if type(value) is int]:
                value = attributes[attribute]
                attributes[attribute] = CodeNumber(value, Attribute(name, attribute, value))
    token = _USED.set(used)
    try:
        yield
    finally:
        _USED.reset(token)
        for module in {*modules.values(), *model.modules()}:
            for attribute, value in list(module.__dict__.items()):
                if type(value) is CodeNumber:
                    module.__dict__[attribute] = int(value)
