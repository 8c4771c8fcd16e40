"""Sweeps: every point to its end, only what is missing, the same bits however many run at once."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from latewood.errors import Interrupted, RequestError
from latewood.studies.sweeps.sweep import SweepResult, sweep
from latewood.studies.sweeps.sweep_page import density_curve, heat_map
from latewood.training.folder_lock import FolderLock

RECIPE = """
task = "digits"
model = "mlp"
steps = 3
batch_size = 32
optimizer = {name = "sgd", lr = 0.1}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(RECIPE)
    return path


def _run(recipe: Path, folder: Path, grid: dict[str, list[object]], **more: Any) -> SweepResult:
    return sweep(recipe, grid, folder=folder, show_progress=False, **{"jobs": 1, **more})


def _model(result: SweepResult, run: str) -> bytes:
    return (result.folder / run / "model.safetensors").read_bytes()


def test_grid_to_table(recipe: Path, tmp_path: Path) -> None:
    result = _run(recipe, tmp_path / "s", {"optimizer.lr": [1e-6, 0.1], "seed": [0, 1]})
    assert [row["status"] for row in result.rows] == ["done"] * 4
    assert result.headline == "accuracy"
    scores = [row["accuracy"] for row in result.rows]
    assert scores == sorted(scores, reverse=True)
    assert {row["optimizer.lr"] for row in result.rows[:2]} == {0.1}
    assert json.loads((tmp_path / "s" / "sweep.json").read_text()) == result.rows
    assert len((tmp_path / "s" / "sweep.csv").read_text().splitlines()) == 5
    page = (tmp_path / "s" / "sweep.html").read_text()
    assert "4 runs over optimizer.lr, seed" in page


def test_same_bits_however_many_run_at_once(recipe: Path, tmp_path: Path) -> None:
    one = _run(recipe, tmp_path / "one", {"seed": [0, 1]})
    two = _run(recipe, tmp_path / "two", {"seed": [0, 1]}, jobs=2)
    assert [row["run"] for row in one.rows] == [row["run"] for row in two.rows]
    assert [row["accuracy"] for row in one.rows] == [row["accuracy"] for row in two.rows]
    for run in ("seed=0", "seed=1"):
        assert _model(one, run) == _model(two, run)
    assert _model(one, "seed=0") != _model(one, "seed=1")


def test_only_what_is_missing_or_unfinished_is_done(recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    first = _run(recipe, folder, {"seed": [0, 1]})
    before = {run: _model(first, run) for run in ("seed=0", "seed=1")}
    (folder / "seed=0" / "model.safetensors").write_bytes(b"kept as it is")
    for name in ("summary.json", "model.safetensors"):
        (folder / "seed=1" / name).unlink()
    again = _run(recipe, folder, {"seed": [0, 1, 2]})
    assert [row["status"] for row in again.rows] == ["done"] * 3
    assert _model(again, "seed=0") == b"kept as it is"
    assert _model(again, "seed=1") == before["seed=1"]


def test_a_failed_run_is_named_and_the_others_go_on(recipe: Path, tmp_path: Path) -> None:
    result = _run(recipe, tmp_path / "s", {"optimizer.weight_decay": [1e30, 0.0]}, jobs=2)
    assert result.rows[0]["status"] == "done"
    [failed] = result.failed
    assert failed["optimizer.weight_decay"] == 1e30
    assert failed["status"] == "failed"
    assert "the loss is" in str(failed["error"])
    assert "the loss is" in (tmp_path / "s" / "sweep.csv").read_text()
    assert list((tmp_path / "s").rglob("failure"))


def test_a_diverged_run_is_a_result_of_a_sweep_over_learning_rates(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = _run(recipe, tmp_path / "s", {"optimizer.lr": [1e30, 0.1]}, jobs=2)
    assert not result.failed
    best, diverged = result.rows
    assert (best["status"], diverged["status"]) == ("done", "diverged")
    assert diverged["optimizer.lr"] == 1e30 and diverged["accuracy"] is None
    assert "the loss is" in str(diverged["error"])
    assert "state is in" not in str(diverged["error"])
    assert not list((tmp_path / "s").rglob("failure"))

    def again(*args: object, **more: object) -> None:
        raise AssertionError("what is known was trained again")

    monkeypatch.setattr("latewood.training.run.train", again)
    assert _run(recipe, tmp_path / "s", {"optimizer.lr": [1e30, 0.1]}).rows == result.rows


DEADLY = """
import os, signal
from pathlib import Path
from torch import nn

def net(*, in_features: int, num_classes: int, deaths: int = 0, marker: str = ""):
    if len(Path(marker).read_text()) < deaths:
        with open(marker, "a") as file:
            file.write("x")
        os.kill(os.getpid(), signal.SIGKILL)
    return nn.Sequential(nn.Flatten(), nn.Linear(in_features, num_classes))
"""


def test_a_killed_worker_is_retried_once_recorded_and_takes_no_other_run_with_it(
    recipe: Path, tmp_path: Path
) -> None:
    (tmp_path / "deadly_nets.py").write_text(DEADLY)
    (tmp_path / "marker").touch()
    model = f'{{name = "deadly_nets:net", marker = "{tmp_path / "marker"}"}}'
    recipe.write_text(recipe.read_text().replace('"mlp"', model))
    with pytest.warns(UserWarning, match="a process died"):
        once = _run(recipe, tmp_path / "once", {"model.deaths": [0, 1]}, jobs=2)
    assert [row["status"] for row in once.rows] == ["done"] * 2
    with pytest.warns(UserWarning, match="a process died"):
        twice = _run(recipe, tmp_path / "twice", {"model.deaths": [0, 100, 1]}, jobs=2)
    [failed] = twice.failed
    assert failed["model.deaths"] == 100
    assert "its process died twice (SIGKILL" in str(failed["error"])
    assert "its process died twice" in (tmp_path / "twice" / "sweep.csv").read_text()


def test_a_second_sweep_beside_a_live_one_is_refused(recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    _run(recipe, folder, {"seed": [0]})
    with FolderLock(folder):
        for overwrite in (False, True):
            with pytest.raises(RequestError, match=r"folder: got .*, which process"):
                _run(recipe, folder, {"seed": [0, 1]}, overwrite=overwrite)
    with FolderLock(folder / "seed=0"), pytest.raises(RequestError, match=r"seed=0', which proc"):
        _run(recipe, folder, {"seed": [0]}, overwrite=True)
    assert sorted(path.name for path in folder.glob("seed*")) == ["seed=0"]
    assert (folder / "seed=0" / "summary.json").exists()


def test_any_error_of_a_run_is_recorded(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **more: object) -> None:
        raise ZeroDivisionError("by the user's own task")

    monkeypatch.setattr("latewood.training.run.train", broken)
    result = _run(recipe, tmp_path / "s", {"seed": [0]})
    assert result.rows[0]["error"] == "ZeroDivisionError: by the user's own task"
    assert not (tmp_path / "s" / "sweep.html").exists()


@pytest.mark.parametrize("stop", [KeyboardInterrupt, Interrupted])
def test_ctrl_c_says_how_to_go_on(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]
) -> None:
    _run(recipe, tmp_path / "s", {"seed": [0]})

    def stopped(*args: object, **more: object) -> None:
        raise stop

    monkeypatch.setattr("latewood.training.run.train", stopped)
    with pytest.raises(Interrupted, match="stopped with 1 of 3 runs done; the same command"):
        _run(recipe, tmp_path / "s", {"seed": [0, 1, 2]})


def test_points_beside_a_grid(recipe: Path, tmp_path: Path) -> None:
    points = [("optimizer.lr=0.2", "seed=3")]
    result = _run(
        recipe, tmp_path / "s", {"seed": [0]}, points=points, overrides=["steps=1"], threads=2
    )
    assert {row["run"] for row in result.rows} == {"seed=0", "optimizer.lr=0.2,seed=3"}
    written = tomllib.loads((tmp_path / "s" / "seed=0" / "recipe.toml").read_text())
    assert (written["steps"], written["environment"]["threads"]) == (1, 2)


def test_overwriting_leaves_no_run_of_the_earlier_sweep(recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    _run(recipe, folder, {"seed": [0, 1]})
    (folder / "notes").mkdir()
    _run(recipe, folder, {"seed": [0]}, overrides=["steps=2"], overwrite=True)
    again = _run(recipe, folder, {"seed": [0, 1]}, overrides=["steps=2"])
    for row in again.rows:
        summary = json.loads((folder / str(row["run"]) / "summary.json").read_text())
        assert summary["steps"] == 2
    assert (folder / "notes").is_dir()


def test_another_recipe_in_the_folder(recipe: Path, tmp_path: Path) -> None:
    _run(recipe, tmp_path / "s", {"seed": [0]})
    with pytest.raises(RequestError, match="another recipe"):
        _run(recipe, tmp_path / "s", {"seed": [0]}, overrides=["steps=2"])
    result = _run(recipe, tmp_path / "s", {"seed": [0]}, overrides=["steps=2"], overwrite=True)
    assert json.loads((result.folder / "seed=0" / "summary.json").read_text())["steps"] == 2


@pytest.mark.parametrize(
    ("grid", "more", "message"),
    [
        ({}, {}, "one point or more"),
        ({"seed": [0]}, {"points": [("seed=0",)]}, "each once"),
        ({"optimizer.lrr": [0.1]}, {}, r"optimizer\.lrr"),
        ({"seed": [0]}, {"jobs": 0}, "jobs"),
        ({"seed": [0]}, {"threads": 0}, "threads"),
        ({"seed": [0]}, {"backend": "slurm"}, "'loky', 'ray', 'dask'"),
    ],
)
def test_wrong_requests_start_nothing(
    recipe: Path, tmp_path: Path, grid: dict[str, list[object]], more: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        _run(recipe, tmp_path / "s", grid, **more)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("backend", ["ray", "dask"])
def test_a_backend_that_is_not_installed(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    monkeypatch.setattr("latewood.studies.workers.find_spec", lambda name: None)
    with pytest.raises(RequestError, match=rf"latewood\[{backend}\]"):
        _run(recipe, tmp_path / "s", {"seed": [0]}, backend=backend)


def test_a_folder_of_something_else(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="holds no sweep"):
        _run(recipe, tmp_path, {"seed": [0]})


def test_heat_map_has_its_values_in_place() -> None:
    rows = [
        {"lr": 0.1, "name": "b<i>", "accuracy": 0.9},
        {"lr": 0.01, "name": "a", "accuracy": 0.8},
        {"lr": 0.1, "name": "a", "accuracy": None},
        {"lr": 0.1, "name": "b<i>", "accuracy": 0.1},
    ]
    figure = heat_map(rows, ["lr", "name"], "accuracy")
    assert figure is not None
    trace = figure.data[0]
    assert (trace["y"], trace["x"]) == (["0.01", "0.1"], ["a", "b&lt;i&gt;"])
    assert trace["z"] == [[0.8, None], [None, 0.9]]
    assert heat_map(rows, ["lr"], "accuracy") is None
    sections = [{**row, "name": [{"name": row["name"], "rate": 0.5}]} for row in rows]
    figure = heat_map(sections, ["lr", "name"], "accuracy")
    assert figure is not None
    assert figure.data[0]["x"] == ["a rate 0.5", "b&lt;i&gt; rate 0.5"]
    assert figure.data[0]["z"] == [[0.8, None], [None, 0.9]]


def test_seeds_are_no_axis_of_the_heat_map() -> None:
    rows = [
        {"lr": lr, "width": width, "seed": seed, "accuracy": accuracy + 0.02 * seed}
        for lr, width, accuracy in [(0.1, 4, 0.5), (0.1, 8, 0.6), (0.2, 4, 0.7)]
        for seed in (0, 1)
    ]
    assert heat_map(rows, ["lr", "seed"], "accuracy") is None
    figure = heat_map(rows, ["lr", "seed", "width"], "accuracy")
    assert figure is not None
    assert figure.data[0]["z"] == [pytest.approx([0.51, 0.61]), [pytest.approx(0.71), None]]
    assert "mean over seeds" in figure.title


def test_a_sweep_over_ways_to_prune_draws_quality_over_density(
    recipe: Path, tmp_path: Path
) -> None:
    gradual = 'methods=[{name="gradual_magnitude_pruning", density=DENSITY}]'
    points = [
        (gradual.replace("DENSITY", density), f"seed={seed}")
        for density in ("0.1", "0.5")
        for seed in (0, 1)
    ]
    result = _run(recipe, tmp_path / "s", {"seed": [0]}, points=points)
    assert [row["status"] for row in result.rows] == ["done"] * 5
    page = (tmp_path / "s" / "sweep.html").read_text()
    assert "Accuracy against density: gradual magnitude pruning." in page
    assert '"name":"dense"' in page
    assert "gradual magnitude pruning density 0.5" in page


def test_each_method_is_a_line_of_means_over_the_seeds() -> None:
    def row(accuracy: float | None, density: float | None, **more: Any) -> dict[str, Any]:
        return {"accuracy": accuracy, "density": density, **more}

    rows = [
        row(0.99, 1.0, lr=0.1, seed=0),
        row(0.98, 1.0, lr=0.3, seed=0),
        row(0.9, 0.2, lr=0.1, seed=0),
        row(0.8, 0.4, lr=0.1, seed=1),
        row(0.7, 0.1, lr=0.3, seed=0),
        row(0.6, 0.1, lr=0.1, seed=0),
        row(0.5, 1.0, lr=0.1, seed=0, parameters=80),
        row(0.4, 1.0, lr=0.3, seed=0, parameters=90),
        row(None, None, lr=0.1, seed=2),
    ]
    methods = ["", "", "soft_masks", "soft_masks", "soft_masks", "by<i>"]
    methods += ["smaller", "by<i>", "by<i>"]
    figure = density_curve(rows, ["lr", "seed"], "accuracy", methods)
    assert figure is not None
    found = {trace["name"]: trace for trace in figure.data if "name" in trace}
    assert set(found) == {"soft masks", "by&lt;i&gt;", "dense"}
    assert found["dense"]["y"] == [0.99, 0.99]
    assert sorted(found["by&lt;i&gt;"]["x"]) == [0.1, 1.0], "all weights kept is a density too"
    soft = found["soft masks"]
    assert soft["x"] == pytest.approx([0.1, 0.3])
    assert soft["y"] == pytest.approx([0.7, 0.85])
    assert "lr 0.3" in soft["customdata"][0] and "seed" not in soft["customdata"][0]
    assert soft["error_y"]["arrayminus"][0] == 0 < soft["error_y"]["arrayminus"][1]


@pytest.mark.parametrize(
    ("densities", "methods", "drawn"),
    [
        ((0.1, 0.1), ("m", "m"), False),
        ((0.1, 0.2), ("m", "m"), True),
        ((0.1, 1.0), ("m", ""), True),
        ((1.0, 1.0), ("m", "m"), False),
        ((1.0, 1.0), ("", ""), False),
        ((None, 0.1), ("m", "m"), False),
    ],
)
def test_nothing_is_drawn_over_one_density(
    densities: tuple[float | None, ...], methods: tuple[str, ...], drawn: bool
) -> None:
    rows = [{"accuracy": 0.9, "density": d, "lr": i} for i, d in enumerate(densities)]
    assert (density_curve(rows, ["lr"], "accuracy", methods) is not None) == drawn
