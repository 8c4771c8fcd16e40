"""A run made longer in a new folder goes on as the longer run would have."""

import filecmp

import pytest
import torch
from safetensors.torch import load_file

from latewood.errors import RequestError
from latewood.training import parse_recipe, train
from latewood.training.longer_run import train_longer
from latewood.training.run_folder import RunFolder


def recipe(**changes):
    base = {
        "task": "digits",
        "model": {"name": "mlp", "hidden": [4]},
        "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
        "epochs": 2,
        "batch_size": 512,
        "device": "cpu",
    }
    return parse_recipe({**base, **changes})


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    return train(recipe(), folder=tmp_path_factory.mktemp("short") / "run").folder


def test_it_ends_with_the_bits_of_the_longer_run(short, tmp_path):
    files = sorted(path for path in short.path.rglob("*") if path.is_file())
    before = {path: path.read_bytes() for path in files}
    longer = train_longer(short.path, ["epochs=4"], folder=tmp_path / "longer").folder
    whole = train(recipe(epochs=4), folder=tmp_path / "whole").folder
    ours, theirs = load_file(longer.model_path), load_file(whole.model_path)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    steps = [
        [row["step"] for row in run.read_metrics() if row["kind"] == "validation"]
        for run in (longer, whole)
    ]
    assert steps[0] == steps[1]
    assert {path: path.read_bytes() for path in files} == before
    assert not filecmp.cmp(short.recipe_path, longer.recipe_path, shallow=False)


def test_stretched_schedules_are_said(tmp_path):
    run = train(recipe(schedule="cosine", epochs=1), folder=tmp_path / "run").folder
    with pytest.warns(UserWarning, match="schedules are stretched from 1 epochs to 2 epochs"):
        train_longer(run.path, ["epochs=2"], folder=tmp_path / "longer")


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["epochs=2"], "epochs above 2"),
        (["epochs=1"], "epochs above 2"),
        (["steps=100"], "epochs above 2"),
        (["epochs=3", "seed=1"], "only epochs=N or steps=N"),
        ([], "epochs above 2"),
    ],
)
def test_what_is_no_longer_run_is_refused(short, tmp_path, overrides, named):
    with pytest.raises(RequestError, match=named):
        train_longer(short.path, overrides, folder=tmp_path / "longer")
    assert not list(tmp_path.iterdir())


def test_a_folder_in_use_is_left_alone(short, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RequestError, match="not empty"):
        train_longer(short.path, ["epochs=3"], folder=tmp_path)
    with pytest.raises(RequestError, match="another folder"):
        train_longer(short.path, ["epochs=3"], folder=short.path)
    with pytest.raises(RequestError, match="expected the folder of a run"):
        train_longer(tmp_path, ["epochs=3"], folder=tmp_path / "longer")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_run_without_a_checkpoint(short, tmp_path):
    RunFolder(tmp_path / "run").create(short.recipe_path.read_text())
    with pytest.raises(RequestError, match="a run with a checkpoint"):
        train_longer(tmp_path / "run", ["epochs=3"], folder=tmp_path / "longer")
