"""What a callable's signature says of its arguments: the schema of a recipe's section."""

from __future__ import annotations

import builtins
import inspect
import json
import math
import typing
from collections import ChainMap, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError

from latewood.errors import RequestError, invalid

__all__ = ["Parameter", "parameters_of"]

_WORDS: dict[Any, str] = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a string",
    type(None): "nothing",
    Path: "a path",
}


@dataclass(frozen=True)
class Parameter:
    """A parameter of a callable, as a recipe may give it.

    Args:
        annotation: its type, as far as a recipe can write it.
        required: whether it has no default.
        positional_only: whether it cannot be given by name.
    """

    annotation: Any
    required: bool
    positional_only: bool

    @property
    def words(self) -> str:
        """What it accepts, for people."""
        return _words(self.annotation)

    def validated(self, value: Any, path: str) -> Any:
        """A value of a recipe in the parameter's type.

        Args:
            value: as TOML gives it.
            path: key path of the value, for errors.

        Raises:
            RequestError: a value of another type.
        """
        if isinstance(value, float) and math.isnan(value):
            raise invalid(path, value, self.words)
        if _is_too_large(value):
            raise RequestError(f"{path}: got more than 64 bits; expected {self.words}")
        try:
            # JSON rules are strict about types and still take a list for a tuple, as TOML must.
            return _adapter(self.annotation).validate_json(json.dumps(value), strict=True)
        except (ValidationError, TypeError) as error:
            raise invalid(path, value, self.words + _detail(error)) from error


def _is_too_large(value: Any) -> bool:
    """Whether an integer is in there that torch has no type for."""
    if isinstance(value, list):
        return any(map(_is_too_large, value))
    if isinstance(value, dict):
        return any(map(_is_too_large, value.values()))
    return isinstance(value, int) and not -(2**63) <= value < 2**63


def parameters_of(factory: Callable[..., Any]) -> tuple[dict[str, Parameter], bool]:
    """The named parameters of a callable, and whether it takes any keyword besides.

    Args:
        factory: a function or a class.
    """
    target = factory.__init__ if inspect.isclass(factory) else factory
    hints = _hints(target)
    parameters: dict[str, Parameter] = {}
    open_ended = False
    for name, parameter in inspect.signature(factory).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            open_ended = True
        elif parameter.kind is not inspect.Parameter.VAR_POSITIONAL:
            required = parameter.default is inspect.Parameter.empty
            annotation = hints.get(name, Any if required else _of_default(parameter.default))
            parameters[name] = Parameter(
                annotation=_expressible(annotation),
                required=required,
                positional_only=parameter.kind is inspect.Parameter.POSITIONAL_ONLY,
            )
    return parameters, open_ended


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a callable by parameter; {} if it cannot have any."""
    try:
        return typing.get_type_hints(target, include_extras=True)
    except TypeError:
        return {}
    except NameError:
        # What only type checkers import is nothing that a recipe could write.
        own = getattr(inspect.unwrap(target), "__globals__", {})
        names = ChainMap(own, vars(builtins), defaultdict(lambda: Any))
        return typing.get_type_hints(target, localns=names, include_extras=True)


def _of_default(default: Any) -> Any:
    """The type that a parameter without an annotation takes: that of its scalar default."""
    if isinstance(default, bool | str):
        return type(default)
    return float if isinstance(default, int | float) else Any


def _expressible(annotation: Any) -> Any:
    """The part of an annotation that a recipe can write: ``float | Tensor`` becomes ``float``."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        members = [_expressible(member) for member in arguments]
        members = [member for member in members if member is not Any]
        return Union[tuple(members)] if members else Any  # noqa: UP007
    if origin in (list, tuple, dict) or (isinstance(origin, type) and issubclass(origin, Sequence)):
        inner = tuple(item if item is ... else _expressible(item) for item in arguments)
        base: Any = list if origin not in (tuple, dict) else origin
        return base[inner]
    try:
        TypeAdapter(annotation)
    except (PydanticSchemaGenerationError, PydanticUserError):
        return Any
    return annotation


def _adapter(annotation: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(annotation, config=ConfigDict(strict=True))
    except PydanticUserError:  # models and dataclasses bring a configuration of their own
        return TypeAdapter(annotation)


def _words(annotation: Any) -> str:
    """What an annotation accepts, for people."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is Any:
        return "a value"
    if origin is typing.Annotated:
        return _words(arguments[0])
    if origin is Literal:
        return "one of " + ", ".join(repr(choice) for choice in arguments)
    if origin in (Union, UnionType):
        alternatives = [_words(member) for member in arguments if member is not type(None)]
        return " or ".join(dict.fromkeys(alternatives))
    if origin is tuple and ... not in arguments:
        return f"a list of {len(arguments)} values: " + ", ".join(map(_words, arguments))
    if origin in (list, tuple):
        return f"a list, each item {_words(arguments[0])}"
    if origin is dict:
        return "a table"
    return _WORDS.get(annotation) or str(getattr(annotation, "__name__", annotation))


def _detail(error: Exception) -> str:
    """Which item of a compound value was wrong, and any bound that a constraint states."""
    if not isinstance(error, ValidationError):
        return ""
    first = error.errors(include_url=False)[0]
    place = "".join(f"[{part}]" for part in first["loc"] if isinstance(part, int))
    bound = first["msg"] if first["type"].startswith(("greater", "less", "multiple")) else ""
    if place and first["type"] != "missing":
        return f" (item {place} is {first['input']!r})"
    return f" ({bound[0].lower()}{bound[1:]})" if bound else ""
