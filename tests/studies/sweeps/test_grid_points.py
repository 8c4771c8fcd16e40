"""Points of a sweep: what is split, combined, refused, and what their folders are called."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latewood.errors import RequestError
from latewood.studies.sweeps.grid_points import (
    folder_name,
    grid_points,
    listed_points,
    parse_grid,
    settings,
)


def test_grid_from_texts() -> None:
    grid = parse_grid(
        ["optimizer.lr=0.1, 0.2", 'model.name="a,b",c', "model.channels=[8,16],[4,4]"]
    )
    assert grid == {
        "optimizer.lr": ["0.1", "0.2"],
        "model.name": ['"a,b"', "c"],
        "model.channels": ["[8,16]", "[4,4]"],
    }


@pytest.mark.parametrize("text", ["lr", "=1,2", "lr=", "lr=1,,2", "lr=1,2,"])
def test_incomplete_grids_are_refused(text: str) -> None:
    with pytest.raises(RequestError, match="--grid"):
        parse_grid([text])


def test_a_key_has_its_values_in_one_place() -> None:
    with pytest.raises(RequestError, match="each key once"):
        parse_grid(["seed=1", "seed=2"])


def test_all_combinations_in_order() -> None:
    assert grid_points({"a": [1, 2], "b": ["x", "y"]}) == [
        ("a=1", "b=x"),
        ("a=1", "b=y"),
        ("a=2", "b=x"),
        ("a=2", "b=y"),
    ]
    assert grid_points({}) == []


@pytest.mark.parametrize("values", [[], [1, 1], ["1", 1], [None]])
def test_values_that_make_no_points(values: list[object]) -> None:
    with pytest.raises(RequestError, match="grid"):
        grid_points({"a": values})


def test_settings_are_read_as_an_override_is() -> None:
    point = grid_points({"a": [0.5], "b": [True], "c": [[1, 2]], "d": ["sgd"], "e": ['"1"']})[0]
    assert settings(point) == {"a": 0.5, "b": True, "c": [1, 2], "d": "sgd", "e": "1"}


def test_list_of_points(tmp_path: Path) -> None:
    path = tmp_path / "points.txt"
    path.write_text('seed=1 optimizer.lr=0.1\n\n# a comment\nname="two words"  # and another\n')
    assert listed_points(path) == [("seed=1", "optimizer.lr=0.1"), ("name=two words",)]


@pytest.mark.parametrize(("line", "message"), [("seed", "line 1"), ('"open', "line 1")])
def test_lines_that_are_no_points(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "points.txt").write_text(line)
    with pytest.raises(RequestError, match=message):
        listed_points(tmp_path / "points.txt")


def test_missing_list(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"none\.txt"):
        listed_points(tmp_path / "none.txt")


def test_readable_folder_names() -> None:
    assert folder_name(("optimizer.lr=0.1", "seed=1")) == "optimizer.lr=0.1,seed=1"
    assert folder_name(("a=x/y",)).startswith("a=x_y-")
    assert len(folder_name(("a=" + "b" * 300,))) < 120


@given(st.text(), st.text())
def test_folder_names_tell_points_apart_and_stay_inside(one: str, other: str) -> None:
    names = [folder_name((f"a={text}",)) for text in (one, other)]
    assert (names[0] == names[1]) == (one == other)
    assert all("/" not in name and not name.startswith(".") for name in names)
