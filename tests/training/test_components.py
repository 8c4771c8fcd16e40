"""Sections against signatures: what is accepted, what is refused and in which words."""

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pytest
import torch
from pydantic import Field

from latewood.errors import RequestError
from latewood.training import components
from latewood.training.components import REGISTRIES, build, check, importable, resolve

if TYPE_CHECKING:
    from elsewhere import OnlyForCheckers


@dataclasses.dataclass(frozen=True)
class Made:
    arguments: dict[str, Any]


def factory(
    model=None,
    *,
    rate: float,
    count: int = 1,
    flag: bool = False,
    kind: Literal["a", "b"] = "a",
    pair: tuple[float, float] = (0.0, 1.0),
    names: tuple[str, ...] = (),
    place: Path | None = None,
    either: float | torch.Tensor = 0.0,
    hook: torch.nn.Module | None = None,
    bounded: Annotated[int, Field(ge=2)] = 2,
    untyped=0.5,
    seed: int = 0,
):
    if rate < 0:
        raise RequestError(f"rate: got {rate!r}; expected a number that is not negative")
    if rate > 100:
        raise RequestError("the two cannot be had together")
    if rate > 50:
        raise ValueError("torch says no")
    return Made(dict(locals()))


def partly_known(*, rate: "float | torch.Tensor" = 1.0, group: "OnlyForCheckers | None" = None):
    return rate, group


def open_ended(*, first: int, **rest):
    return first, rest


def failing(*, rate: float):
    return deeper(rate)


def deeper(rate):
    raise ValueError(f"a bug with {rate}")


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "test_components_here", sys.modules[__name__])
    for name in ("factory", "open_ended", "partly_known", "failing"):
        monkeypatch.setitem(components.METHODS, name, f"test_components_here:{name}")


def refused(section, provided=None, **options):
    with pytest.raises(RequestError) as caught:
        check("method", section, "methods[0]", provided, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    "key, value, expected",
    [
        ("rate", 3, 3.0),
        ("rate", math.inf, math.inf),
        ("count", 4, 4),
        ("flag", True, True),
        ("kind", "b", "b"),
        ("pair", [1, 0.5], (1.0, 0.5)),
        ("names", ["x", "y"], ("x", "y")),
        ("place", "a/b", Path("a/b")),
        ("either", 1, 1.0),
        ("bounded", 2, 2),
        ("untyped", 1, 1.0),
    ],
)
def test_values_of_the_right_type_are_taken(key, value, expected):
    arguments = check("method", {"name": "factory", "rate": 1.0, key: value}, "methods[0]")
    assert arguments[key] == expected
    assert type(arguments[key]) is type(expected)


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("rate", "x", "a number"),
        ("rate", True, "a number"),
        ("count", 1.5, "an integer"),
        ("count", "1", "an integer"),
        ("flag", 1, "true or false"),
        ("kind", "c", "one of 'a', 'b'"),
        ("pair", [1], "a list of 2 values: a number, a number"),
        ("pair", [1, "x"], "(item [1] is 'x')"),
        ("names", "x", "a list, each item a string"),
        ("place", 3, "a path"),
        ("either", "x", "a number"),
        ("bounded", 1, "greater than or equal to 2"),
        ("untyped", "x", "a number"),
    ],
)
def test_values_of_a_wrong_type_are_refused_with_path_value_and_what_is_allowed(key, value, words):
    message = refused({"name": "factory", "rate": 1.0, key: value})
    assert message.startswith(f"methods[0].{key}: got {value!r}; expected ")
    assert words in message


def test_an_unknown_key_lists_the_allowed_ones_and_suggests_the_nearest():
    message = refused({"name": "factory", "rate": 1.0, "cuont": 3})
    assert message.startswith("methods[0].cuont: got 3; 'factory' has no such argument")
    assert "rate, count, flag" in message
    assert message.endswith("did you mean 'count'?")
    assert "model" not in message  # the run's own argument is not on offer


def test_a_provided_argument_may_not_be_set():
    message = refused({"name": "factory", "rate": 1.0, "model": "x"})
    assert message == "methods[0].model: got 'x'; the run sets this itself; drop it"
    # Without being provided it is a key like any other.
    assert check("method", {"name": "factory", "rate": 1.0, "model": 3}, "m", ())["model"] == 3


def test_a_missing_argument_is_named_unless_it_is_offered_or_not_known_yet():
    assert refused({"name": "factory"}) == "methods[0].rate: missing; expected a number"
    assert check("method", {"name": "factory"}, "m", offered={"rate"}) == {}
    assert check("method", {"name": "factory"}, "m", offered=None) == {}


def test_a_name_that_only_type_checkers_know_leaves_the_other_arguments_checked():
    assert check("method", {"name": "partly_known", "rate": 2}, "m") == {"rate": 2.0}
    assert refused({"name": "partly_known", "rate": "x"}).endswith("expected a number")
    assert refused({"name": "partly_known", "group": "x"}).startswith("methods[0].group: got 'x'")


def test_a_callable_that_takes_any_keyword_gets_it():
    assert check("method", {"name": "open_ended", "first": 1, "z": [1]}, "m") == {
        "first": 1,
        "z": [1],
    }


def test_the_signatures_of_torch_are_understood():
    section = {"name": "adam", "lr": 1, "betas": [0.9, 0.99], "foreach": False}
    assert check("optimizer", section, "optimizer") == {
        "lr": 1.0,
        "betas": (0.9, 0.99),
        "foreach": False,
    }
    with pytest.raises(RequestError, match=r"optimizer\.params: .* the run sets this itself"):
        check("optimizer", {"name": "sgd", "params": []}, "optimizer")


def test_build_passes_what_the_signature_names_and_lets_the_section_override_what_is_offered():
    section = {"name": "factory", "rate": 1, "count": 7}
    made = build("method", section, "m", offered={"count": 3, "flag": True, "other": 1}, seed=5)
    assert made.arguments["count"] == 7
    assert made.arguments["flag"] is True
    assert made.arguments["seed"] == 5
    assert made.arguments["rate"] == 1.0


@pytest.mark.parametrize(
    "rate, message",
    [
        (-1, "methods[0].rate: got -1.0; expected a number that is not negative"),
        (101, "methods[0]: the two cannot be had together"),
        (51, "methods[0]: 'factory' refused its arguments: torch says no"),
    ],
)
def test_what_the_callable_refuses_gains_the_key_path(rate, message):
    with pytest.raises(RequestError) as caught:
        build("method", {"name": "factory", "rate": rate}, "methods[0]")
    assert str(caught.value) == message


def test_torch_refusing_a_value_is_a_refusal_of_the_request():
    parameters = [torch.nn.Parameter(torch.zeros(2))]
    with pytest.raises(RequestError, match=r"optimizer: 'sgd' refused .*learning rate: -1"):
        build("optimizer", {"name": "sgd", "lr": -1}, "optimizer", params=parameters)


def test_an_error_from_deep_inside_is_not_taken_for_a_refusal():
    with pytest.raises(ValueError, match="a bug") as caught:
        build("method", {"name": "failing", "rate": 1.0}, "m")
    assert not isinstance(caught.value, RequestError)


def test_an_unknown_name_lists_the_names():
    with pytest.raises(RequestError) as caught:
        resolve("task", "digit", "task")
    message = str(caught.value)
    assert message.startswith("task.name: got 'digit'; expected one of cifar10, digits")
    assert message.endswith("did you mean 'digits'?")


@pytest.mark.parametrize(
    "name, words",
    [
        ("no_such_module_at_all:f", "module 'no_such_module_at_all' cannot be imported"),
        ("json:dumsp", "expected an attribute of 'json'; did you mean 'dump'?"),
        ("json:decoder.nothing", "expected an attribute of 'json'"),
        ("math:pi", "expected something that can be called"),
    ],
)
def test_a_module_or_attribute_that_does_not_exist_is_refused(name, words):
    with pytest.raises(RequestError) as caught:
        resolve("model", name, "model")
    assert str(caught.value).startswith(f"model.name: got {name!r}; ")
    assert words in str(caught.value)


def test_a_module_of_the_users_own_is_found_in_the_folder_and_the_path_is_left_alone(tmp_path):
    import sys

    (tmp_path / "users_own_model.py").write_text("def make(*, width: int = 3):\n    return width\n")
    before = list(sys.path)
    with importable(tmp_path):
        made = build("model", {"name": "users_own_model:make", "width": 5}, "model")
    assert made == 5
    assert sys.path == before


@pytest.mark.parametrize("kind", sorted(REGISTRIES))
def test_every_registered_name_resolves_and_has_a_signature_that_can_be_checked(kind):
    for name in REGISTRIES[kind]:
        if REGISTRIES[kind][name].startswith("test_components_here"):
            continue
        assert callable(resolve(kind, name))
        check(kind, {"name": name}, kind, offered=None)
