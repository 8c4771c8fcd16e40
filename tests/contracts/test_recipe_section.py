"""Every entry is built from a recipe's section; a wrong value or key is refused by its name."""

import builtins
import inspect
import math
import tomllib
import typing
from collections import ChainMap, defaultdict
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import pytest
import torch
from short_training import Training, batch, network_of
from torch import nn

from latewood.core import Method, Probe, parameter_groups
from latewood.errors import RequestError
from latewood.growth import Stages
from latewood.training.components import PROVIDED, build, check

PATHS = {"method": "methods[0]", "probe": "probes[0]", "optimizer": "optimizer"}
SIMPLE = (int, float, bool, str)


def built(case, section, **given):
    model = network_of("mlp")
    provided = {
        "method": {
            "model": model,
            "example_inputs": (batch("mlp", 0, samples=1)[0],),
            "total_steps": 12,
            "steps_per_epoch": 3,
            "seed": 3,
        },
        "probe": {
            "model": model,
            "total_steps": 12,
            "steps_per_epoch": 3,
            "folder": None,
            "stages": Stages(),
            "inputs": batch("mlp", 0)[0],
            "targets": batch("mlp", 0)[1],
        },
        "optimizer": {"params": parameter_groups(model)},
    }[case.kind]
    return build(case.kind, section, PATHS[case.kind], **provided, **given)


def options(case):
    """The arguments that a recipe may set, with the types of those that it can write."""
    constructor = case.factory.__init__
    # A name that only type checkers import stands for something no recipe can write.
    names = ChainMap(constructor.__globals__, vars(builtins), defaultdict(lambda: object))
    hints = typing.get_type_hints(constructor, localns=names, include_extras=True)
    named = [name for name in inspect.signature(case.factory).parameters if name in hints]
    return {name: hints[name] for name in named if name not in PROVIDED[case.kind]}


def members(annotation):
    """The alternatives of an annotation."""
    if get_origin(annotation) in (Union, UnionType):
        return [part for member in get_args(annotation) for part in members(member)]
    return [annotation]


def wrong_values(annotation):
    """Values that no alternative of a simple annotation takes; [] if it is not simple."""
    parts = members(annotation)
    literals = [
        choice for part in parts if get_origin(part) is Literal for choice in get_args(part)
    ]
    kinds = [part for part in parts if part in SIMPLE]
    rest = [
        part
        for part in parts
        if part not in (*SIMPLE, type(None), torch.Tensor) and get_origin(part) is not Literal
    ]
    if rest or not (kinds or literals):
        return []
    wrong: list[Any] = [{"a": "table"}, [1, "list"]]
    if str not in kinds:
        wrong.append("no such word")
    if not {int, float} & {*kinds, *map(type, literals)}:
        wrong.append(7)
    if float not in kinds:
        wrong.append(0.5)
    if bool not in {*kinds, *map(type, literals)}:
        wrong.append(True)
    return wrong


def as_toml(section):
    """The section written as a recipe has it and read back."""

    def value(given):
        if isinstance(given, dict):
            return "{" + ", ".join(f"{key} = {value(v)}" for key, v in given.items()) + "}"
        if isinstance(given, list | tuple):
            return "[" + ", ".join(map(value, given)) + "]"
        return str(given).lower() if isinstance(given, bool) else repr(given)

    return tomllib.loads("\n".join(f"{key} = {value(given)}" for key, given in section.items()))


def test_a_section_of_a_recipe_builds_the_entry(component):
    made = built(component, as_toml(component.section))
    protocol = {"method": Method, "probe": Probe, "optimizer": torch.optim.Optimizer}
    assert isinstance(made, protocol[component.kind])
    assert type(made) is component.factory


def test_a_wrong_type_is_refused_by_name(component):
    checked = 0
    for name, annotation in options(component).items():
        for wrong in wrong_values(annotation):
            with pytest.raises(RequestError) as caught:
                built(component, {**component.section, name: wrong})
            prefix = f"{PATHS[component.kind]}.{name}: got {wrong!r}; expected "
            assert str(caught.value).startswith(prefix)
            checked += 1
    assert checked


def test_not_a_number_is_refused_by_name(component):
    numbers = [name for name, kind in options(component).items() if float in members(kind)]
    assert numbers or component.kind == "probe"
    for name in numbers:
        with pytest.raises(RequestError, match=rf"{name}: got nan; expected "):
            check(component.kind, {**component.section, name: math.nan}, PATHS[component.kind])


def test_an_unknown_key_is_refused_with_the_nearest_one(component):
    name = max(options(component), key=len)
    wrong = name[:-2] + name[-1]
    with pytest.raises(RequestError) as caught:
        built(component, {**component.section, wrong: 1})
    message = str(caught.value)
    assert message.startswith(f"{PATHS[component.kind]}.{wrong}: got 1; ")
    assert message.endswith(f"did you mean {name!r}?")


def test_what_the_run_passes_itself_may_not_be_set(component):
    taken = [name for name in PROVIDED[component.kind] if name in parameters_of(component)]
    assert taken
    for name in taken:
        with pytest.raises(RequestError, match=rf"{name}: .* the run sets this itself"):
            check(component.kind, {**component.section, name: 1}, PATHS[component.kind])


def test_outside_of_recipes_not_a_number_is_refused_by_name_too(component):
    """A constructor that lets nan pass trains to nothing, hours later."""
    for name, kind in options(component).items():
        if float not in members(kind) or not component.is_ours:  # torch's own take nan
            continue
        with pytest.raises(RequestError, match=rf"(^|\W){name}\b.*: got .*nan"):
            direct(component, **{name: math.nan})


def direct(case, **given):
    model = network_of("mlp")
    if case.kind == "optimizer":
        return case.factory(list(model.parameters()), **{**arguments_of(case), **given})
    offered = {
        "example_inputs": (batch("mlp", 0, samples=1)[0],),
        "total_steps": 12,
        "steps_per_epoch": 3,
    }
    taken = {key: value for key, value in offered.items() if key in parameters_of(case)}
    return case.factory(model, **taken, **{**arguments_of(case), **given})


def arguments_of(case):
    return {key: value for key, value in case.section.items() if key != "name"}


def parameters_of(case):
    return inspect.signature(case.factory).parameters


def test_trainings_are_built_from_sections(component, tmp_path):
    """What all other checks run on is what a recipe would have built."""
    training = Training(component, "mlp", folder=tmp_path, fresh=True)
    made = [*training.methods, *training.probes, training.optimizer]
    assert component.factory in [type(part) for part in made]
    assert isinstance(training.model, nn.Module)
