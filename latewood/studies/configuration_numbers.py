"""Finding the numbers of a configuration that describe a model whose sizes have changed."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from latewood.errors import RequestError, listed

__all__ = ["Indescribable", "fitted_configuration"]

Configuration = dict[str, Any]
_Path = tuple[str | int, ...]

_MOST_PAIRS: Final = 500
_BEAM: Final = 4
_TENSOR: Final = "tensor "

MakeModel = Callable[["Configuration"], nn.Module]


@dataclass(frozen=True)
class _Change:
    """One number of a configuration and what it becomes."""

    path: _Path
    value: float


class Indescribable(RequestError):
    """No numbers of a configuration make a model with the widths asked for.

    Args:
        tensors: names of those whose shapes no configuration gives.
    """

    def __init__(self, tensors: Collection[str]) -> None:
        super().__init__(
            "configuration: its numbers describe no model with these widths: they differ in "
            + listed(sorted(tensors))
        )
        self.tensors = frozenset(tensors)


def fitted_configuration(
    make_model: MakeModel, configuration: Configuration, model: nn.Module
) -> Configuration:
    """Changes numbers of a configuration until the model that it makes is like a given one.

    Alike means the same tensors of the same shapes, and as far as possible the same numbers as
    attributes of modules (heads, epsilons); whether those that differ matter, only comparing
    outputs tells. One number is changed at a time, or two where one is not enough, as long as this
    makes the models more alike. Nothing goes by the names of the numbers.

    Args:
        make_model: makes the model of a configuration; it is called with ``meta`` as the default
            device, and may raise for a configuration that makes none.
        configuration: of a model of the same structure with other sizes, as JSON can hold it.
        model: what the configuration is to describe.

    Returns:
        The new configuration.

    Raises:
        Indescribable: no change of numbers leads there; the message names what differs.
    """
    wanted = _signature(model)
    start = _State.of(make_model, configuration, wanted)
    if start is None:
        raise RequestError("configuration: got one that makes no model; expected that of the model")
    beam = [start]
    best = start
    # A number that explains much at once may be the wrong one: several ways are followed.
    while beam:
        reached: dict[str, _State] = {}
        for state in beam:
            for trial in state.nearer(make_model, wanted):
                reached[json.dumps(trial.configuration, sort_keys=True, default=str)] = trial
        beam = sorted(reached.values(), key=lambda state: len(state.difference))[:_BEAM]
        best = min([best, *beam], key=lambda state: len(state.difference))
    # Attributes that nothing computes with stay behind when widths change.
    if tensors := best.difference & _tensors(wanted):
        raise Indescribable([name.removeprefix(_TENSOR) for name in tensors])
    return best.configuration


_Signature = Mapping[str, tuple[float, ...]]
"""By the name of a tensor its shape, and by that of an attribute its value."""


def _signature(model: nn.Module) -> _Signature:
    numbers: dict[str, tuple[float, ...]] = {
        _TENSOR + name: tuple(tensor.shape) for name, tensor in model.state_dict().items()
    }
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                numbers[f"{name}.{attribute}"] = (value,)
    return numbers


def _made(make_model: MakeModel, configuration: Configuration) -> _Signature | None:
    try:
        with torch.device("meta"):
            return _signature(make_model(copy.deepcopy(configuration)))
    except Exception:  # a constructor may raise anything for numbers that do not go together
        return None


def _difference(present: _Signature, wanted: _Signature) -> frozenset[str]:
    names = present.keys() | wanted.keys()
    return frozenset(name for name in names if present.get(name) != wanted.get(name))


def _changes(now: Configuration, present: _Signature, wanted: _Signature) -> list[_Change]:
    """Numbers that are sizes of now, or go with one in proportion, with what they would become."""
    steps = _steps(present, wanted)
    changes: dict[_Change, None] = {}
    for path, value in _numbers(now):
        if value is None:
            continue
        for old, new in steps:
            if value == old:
                changes[_Change(path, type(value)(new))] = None
        changes |= dict.fromkeys(_proportional(path, value, steps))
    return list(changes)


def _opposite_changes(now: Configuration, present: _Signature, wanted: _Signature) -> list[_Change]:
    """Numbers that go against a size: twice as many heads make each of them half as large."""
    steps = [(new, old) for old, new in _steps(present, wanted)]
    changes: dict[_Change, None] = {}
    for path, value in _numbers(now):
        if value is not None:
            changes |= dict.fromkeys(_proportional(path, value, steps))
    return list(changes)


def _proportional(
    path: _Path, value: float, steps: Iterable[tuple[float, float]]
) -> Iterator[_Change]:
    for old, new in steps:
        scaled = value * new / old if old and isinstance(value, int) else 0.0
        if scaled > 0 and scaled == int(scaled):
            yield _Change(path, int(scaled))


def _additions(now: Configuration, present: _Signature, wanted: _Signature) -> list[_Change]:
    """Sizes where the configuration says nothing, so that the model chooses for itself."""
    sizes = sorted({int(new) for _, new in _steps(present, wanted) if new == int(new)})
    empty = [path for path, value in _numbers(now) if value is None]
    return [_Change(path, size) for path, size in itertools.product(empty, sizes)]


def _steps(present: _Signature, wanted: _Signature) -> list[tuple[float, float]]:
    """What sizes and attributes are now and shall be."""
    return sorted(
        {
            (old, new)
            for name in present.keys() & wanted.keys()
            if len(present[name]) == len(wanted[name])
            for old, new in zip(present[name], wanted[name], strict=True)
            if old != new
        }
    )


def _numbers(tree: Any, path: _Path = ()) -> Iterator[tuple[_Path, int | float | None]]:
    """The numbers of a configuration, and the places where one could be."""
    places = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in places:
        if isinstance(value, dict | list):
            yield from _numbers(value, (*path, key))
        elif value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
            yield (*path, key), value


@dataclass(frozen=True)
class _State:
    """A configuration on the way, what it makes, and where that differs from what is wanted."""

    configuration: Configuration
    signature: _Signature
    difference: frozenset[str]

    @staticmethod
    def of(
        make_model: MakeModel, configuration: Configuration, wanted: _Signature
    ) -> _State | None:
        """The state of a configuration; None if it makes no model."""
        made = _made(make_model, configuration)
        return None if made is None else _State(configuration, made, _difference(made, wanted))

    def nearer(self, make_model: MakeModel, wanted: _Signature) -> list[_State]:
        """The states that differ less after one change, or after two where one is not enough."""
        told = self.configuration, self.signature, wanted
        changes = _changes(*told)
        pairs = [list(pair) for pair in itertools.combinations(changes, 2)]
        # What attributes alone still tell once all shapes are right.
        settled = not self.difference & _tensors(wanted)
        opposite = _opposite_changes(*told) if settled else []
        additions = _additions(*told)
        for choices in (
            [[change] for change in (*changes, *opposite)],
            [[change] for change in additions],
            pairs[:_MOST_PAIRS],
        ):
            trials = [
                _State.of(make_model, _changed(self.configuration, choice), wanted)
                for choice in choices
            ]
            better = [
                trial
                for trial in trials
                if trial is not None and len(trial.difference) < len(self.difference)
            ]
            if better or settled:
                return better
        return []


def _tensors(signature: _Signature) -> set[str]:
    """The names of tensors, which have shapes of any length; attributes are single numbers."""
    return {name for name in signature if name.startswith(_TENSOR)}


def _changed(configuration: Configuration, choice: Iterable[_Change]) -> Configuration:
    changed = copy.deepcopy(configuration)
    for change in choice:
        place: Any = changed
        for key in change.path[:-1]:
            place = place[key]
        place[change.path[-1]] = change.value
    return changed
