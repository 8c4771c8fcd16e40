"""Opening somebody else's run executes nothing of theirs, unless the user says so."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from latewood.errors import RequestError
from latewood.studies.connectivity.branching import branch_run
from latewood.studies.connectivity.connecting import connect_files
from latewood.studies.demo import run_demo
from latewood.studies.slim_run import slim_run
from latewood.studies.sweeps.sweep import sweep
from latewood.studies.trained_segmenter import trained_segmenter
from latewood.training import open_run
from latewood.training.components import importable
from latewood.training.recipe import load_recipe, parse_recipe, read_recipe, resumption
from latewood.training.run import train
from latewood.training.run_folder import RunFolder
from latewood.training.toml import to_toml

RECIPE = {
    "task": "digits",
    "model": {"name": "mlp", "hidden": [8]},
    "steps": 3,
    "device": "cpu",
    "keep_at": [0],
}

EVIL = "from pathlib import Path\nPath({marker!r}).touch()\ndef net(**options):\n    return None\n"


@pytest.fixture
def theirs(tmp_path):
    """Makes somebody's run whose recipe names something, and the file that tells of an execution.

    Their module, and one that is called like a package that every run imports, lie in its folder,
    which the recipe also records as the place of its modules.
    """
    train(parse_recipe(RECIPE), folder=tmp_path / "run", show_progress=False)
    marker = tmp_path / "executed"
    folder = tmp_path / "run"

    def make(key="model", section='{name = "their_evil_module:net"}'):
        document = {**RECIPE, key: tomllib.loads(f"section = {section}")["section"]}
        text = to_toml(document | {"environment": {"folder": str(folder)}})
        (folder / "recipe.toml").write_text(text, encoding="utf-8")
        for name in ("their_evil_module", "sklearn"):
            (folder / name).mkdir(exist_ok=True)
            code = EVIL.format(marker=str(marker))
            (folder / name / "__init__.py").write_text(code, encoding="utf-8")
        return folder, marker

    return make


OPENERS = {
    "open_run": open_run,
    "slim": lambda run: slim_run(run, mode="dense"),
    "resume": lambda run: train(None, folder=run, resume=True, show_progress=False),
    "branch": lambda run: branch_run(RunFolder(run), 0, seeds=[1], folder=run.parent / "b"),
    "connect": lambda run: connect_files(run, run, points=2),
    "segment": lambda run: trained_segmenter(RunFolder(run)),
    "recipe": lambda run: load_recipe(run / "recipe.toml"),
    "sweep": lambda run: sweep(run / "recipe.toml", {"seed": [1]}, folder=run.parent / "s", jobs=1),
}


@pytest.mark.parametrize("opener", OPENERS.values(), ids=OPENERS)
def test_a_module_in_their_folder_is_not_imported(theirs, opener):
    run, marker = theirs()
    with pytest.raises(RequestError, match=r"model\.name: got 'their_evil_module:net' in .* --tru"):
        opener(run)
    assert not marker.exists()
    assert "their_evil_module" not in sys.modules


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("model", "os:system"),
        ("task", "builtins:exec"),
        ("schedule", "subprocess:run"),
        ("model", "torch.hub:load"),
        ("model", "latewood.training.run_folder:write_atomically"),
        ("optimizer", "torch:load"),
        ("model", "sklearn.base:BaseEstimator"),
        ("model", "numpy.f2py.__main__:main"),
        ("model", "torch.nn:Module.eval"),
    ],
)
def test_nor_is_anything_called_that_could_do_their_will(theirs, key, name):
    run, _ = theirs(key, f'{{name = "{name}"}}')
    with pytest.raises(RequestError, match=rf"{key}\.name: got '{name}' in the recipe of a run"):
        open_run(run)


def test_what_ships_or_is_an_installed_class_needs_no_trust(theirs):
    run, marker = theirs("optimizer", '{name = "torch.optim:RMSprop", lr = 0.01}')
    assert not load_recipe(run / "recipe.toml").trusted
    assert open_run(run).recipe.optimizer["name"] == "torch.optim:RMSprop"
    run, marker = theirs("model", '{name = "latewood.models:mlp", hidden = [8]}')
    assert open_run(run).model is not None
    assert not marker.exists()


def test_trust_imports_what_they_name_and_only_after_what_is_installed(theirs):
    run, marker = theirs("model", '{name = "their_trusted_module:net"}')
    code = "from torch import nn\ndef net(*, in_features: int, num_classes: int):\n"
    code += "    return nn.Sequential(nn.Flatten(), nn.Linear(in_features, num_classes))\n"
    (run / "their_trusted_module.py").write_text(code)
    (run / "summary.json").unlink()
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(RequestError, match="--trust"):
        train(None, folder=run, resume=True, show_progress=False)
    done = train(None, folder=run, resume=True, trust=True, show_progress=False)
    assert done.summary["steps"] == 3
    assert open_run(run, trust=True).model is not None
    assert not marker.exists(), "their sklearn took the place of the installed one"
    import sklearn

    assert run not in Path(sklearn.__file__).parents


def test_the_users_own_recipe_stands_for_an_equal_one_of_the_run(theirs, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    code = "from torch import nn\ndef net(*, in_features: int, num_classes: int):\n"
    code += "    return nn.Sequential(nn.Flatten(), nn.Linear(in_features, num_classes))\n"
    (home / "my_own_nets.py").write_text(code)
    text = 'task = "digits"\nmodel = "my_own_nets:net"\nsteps = 3\ndevice = "cpu"\n'
    (home / "mine.toml").write_text(text)
    run = train(home / "mine.toml", folder=tmp_path / "mine", show_progress=False).folder
    run.summary_path.unlink()
    with pytest.raises(RequestError, match="--trust"):
        train(None, folder=run.path, resume=True, show_progress=False)
    train(home / "mine.toml", folder=run.path, resume=True, show_progress=False)
    assert open_run(run.path, recipe=load_recipe(home / "mine.toml")).model is not None


def test_a_folder_of_another_sweep_or_demo_is_compared_without_importing(theirs, tmp_path):
    run, marker = theirs()
    (tmp_path / "own.toml").write_text('task = "digits"\nmodel = "mlp"\nsteps = 1\n')
    for folder, name in ((tmp_path / "s", "sweep.toml"), (tmp_path / "d" / "dense", "recipe.toml")):
        folder.mkdir(parents=True)
        (folder / name).write_text((run / "recipe.toml").read_text())
    with pytest.raises(RequestError, match="another recipe"):
        sweep(tmp_path / "own.toml", {"seed": [0]}, folder=tmp_path / "s", jobs=1)
    with pytest.raises(RequestError, match="other settings"):
        run_demo(tmp_path / "d")
    assert not marker.exists()


def test_the_path_is_extended_at_its_end_and_only_for_names_with_a_module(tmp_path):
    before = list(sys.path)
    with importable(tmp_path):
        assert sys.path == [*before, str(tmp_path)]
    assert sys.path == before
    assert parse_recipe(RECIPE, [tmp_path]).import_folders == ()
    own = RECIPE | {"model": "torch.nn:Identity"}
    assert parse_recipe(own, [tmp_path]).import_folders == (tmp_path, Path.cwd())


def test_a_module_called_like_an_installed_one_is_told_apart(tmp_path):
    (tmp_path / "json.py").write_text("def net():\n    pass\n")
    with pytest.raises(RequestError, match=r"so give '.*json\.py' another name"):
        parse_recipe(RECIPE | {"model": "json:net"}, [tmp_path])


def test_launched_with_m_from_their_folder_nothing_of_theirs_shadows_a_package(theirs):
    run, marker = theirs("model", '{name = "mlp", hidden = [8]}')
    command = [sys.executable, "-m", "latewood", "train", "--resume", "."]
    done = subprocess.run(command, cwd=run, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not marker.exists()


def test_a_stopped_run_says_when_trust_is_needed(tmp_path):
    assert not read_recipe("digits-mlp").names_modules
    own = parse_recipe(RECIPE | {"model": {"name": "torch.nn:Identity"}})
    assert resumption(own, Path("runs/a")) == "--resume runs/a --trust"
    assert resumption(parse_recipe(RECIPE), Path("runs/a")) == "--resume runs/a"
