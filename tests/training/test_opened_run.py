"""open_run: every path that means a model, the caller left alone, and what is refused by name."""

import dataclasses
import json
import random
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from latewood.core import read_tensors
from latewood.errors import RequestError, WorkError
from latewood.sparsity import ContinuousSparsification
from latewood.tasks.digits import digits
from latewood.training import load_recipe, open_run, train
from latewood.training.opened_run import model_of_state, run_of

RECIPE = """
task = "digits"
model = {name = "convnet", channels = [4, 6], strides = [2, 2]}
steps = 6
batch_size = 64
recalibration_batches = 2
optimizer = {name = "sgd", lr = 0.1, momentum = 0.9}
keep_at = [0, 3]
device = "cpu"
"""
METHOD = """
[[methods]]
name = "continuous_sparsification"
initial_logit = 0.001
final_temperature = 1e4
"""
PARTS = """
from torch import nn

def net(*, num_classes: int = 10):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))
"""


def trained(folder, text):
    folder.mkdir(exist_ok=True)
    (folder / "recipe.toml").write_text(text)
    train(load_recipe(folder / "recipe.toml"), folder=folder / "run", show_progress=False)
    return folder / "run"


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("plain"), RECIPE)


@pytest.fixture(scope="module")
def masked_run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("masked"), RECIPE + METHOD)


@pytest.fixture
def plain(plain_run, tmp_path):
    return shutil.copytree(plain_run, tmp_path / "plain")


@pytest.fixture
def masked(masked_run, tmp_path):
    return shutil.copytree(masked_run, tmp_path / "masked")


def step(run, number):
    return run / "checkpoints" / f"step-{number:08d}"


def holds(model, state):
    own = model.state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[name], state[name]) for name in own)


def test_a_finished_run_is_the_model_it_ended_with(plain, masked):
    for run in (plain, masked):
        for path in (run, str(run), run / "model.safetensors", step(run, 6)):
            opened = open_run(path)
            assert holds(opened.model, load_file(run / "model.safetensors"))
            assert not any(module.training for module in opened.model.modules())
            assert opened.methods == {}
        assert opened.recipe.steps == 6 and opened.task.name == "digits"
        assert opened.folder.path.resolve() == run.resolve()
        assert opened.weights == step(run.resolve(), 6) / "model.safetensors"
        assert opened.model(opened.task.example_inputs[0]).shape == (1, 10)
    with pytest.raises(dataclasses.FrozenInstanceError):
        opened.model = None


def test_as_trained_it_is_what_the_checkpoint_holds_under_its_methods(plain, masked):
    for run, methods in ((plain, set()), (masked, {"continuous_sparsification"})):
        for path, number in ((run, 6), (step(run, 3), 3), (step(run, 0) / "model.safetensors", 0)):
            opened = open_run(path, finalized=False)
            assert holds(opened.model, load_file(step(run, number) / "model.safetensors"))
            assert opened.methods.keys() == methods
    method = opened.methods["continuous_sparsification"]
    assert isinstance(method, ContinuousSparsification)
    assert opened.model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_a_checkpoint_is_finalized_as_if_the_run_had_ended_there(masked, plain):
    middle = open_run(step(masked, 3)).model
    stored = load_file(step(masked, 3) / "model.safetensors")
    assert middle.state_dict().keys() == open_run(plain).model.state_dict().keys()
    mask = stored["conv2.parametrizations.weight.0.mask_logits"] > 0
    assert torch.equal(middle.conv2.weight != 0, mask) and not mask.all()


def test_a_run_under_way_stands_for_its_last_checkpoint(plain, masked):
    for run in (plain, masked):
        (run / "summary.json").unlink()
        (run / "model.safetensors").rename(run / "away.safetensors")
        shutil.rmtree(step(run, 6))
        for finalized in (True, False):
            one, other = (open_run(path, finalized=finalized).model for path in (run, step(run, 3)))
            assert holds(one, other.state_dict())


def test_the_state_that_a_failed_step_left_opens_too(masked):
    failed = masked / "failure" / "step-00000003"
    shutil.copytree(step(masked, 3), failed)
    assert holds(open_run(failed).model, open_run(step(masked, 3)).model.state_dict())


def test_weights_elsewhere_in_a_run_open_where_no_state_of_a_method_is_needed(plain, masked):
    for run in (plain, masked):
        shutil.copy(run / "model.safetensors", run / "copy.safetensors")
        assert holds(open_run(run / "copy.safetensors").model, read_tensors(run))
    shutil.copy(step(masked, 3) / "model.safetensors", masked / "copy.safetensors")
    opened = open_run(masked / "copy.safetensors", finalized=False)
    assert holds(opened.model, load_file(masked / "copy.safetensors"))
    with pytest.raises(RequestError, match=r"weights: got '.*copy.*expected a checkpoint"):
        open_run(masked / "copy.safetensors")
    opened = open_run(plain)
    model, methods = model_of_state(opened.recipe, opened.task, read_tensors(plain), "file")
    assert holds(model, read_tensors(plain)) and methods == {}


def test_the_caller_is_left_alone_and_nothing_is_written(masked, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")  # a launcher's processes open for themselves
    torch.manual_seed(11)
    random.seed(12)
    np.random.seed(13)  # noqa: NPY002
    torch.set_default_dtype(torch.float64)
    threads = torch.get_num_threads()
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    files = {path: path.stat().st_mtime_ns for path in masked.rglob("*")}
    try:
        with torch.no_grad():
            opened = [
                open_run(masked),
                open_run(step(masked, 3)),
                open_run(masked, finalized=False),
            ]
            assert not torch.is_grad_enabled()
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(p.dtype == torch.float32 for each in opened for p in each.model.parameters())
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1]  # noqa: NPY002
    assert torch.equal(before[0], after[0]) and before[1] == after[1]
    assert (before[2] == after[2]).all()
    assert torch.get_num_threads() == threads
    assert files == {path: path.stat().st_mtime_ns for path in masked.rglob("*")}


def test_a_task_or_a_recipe_may_stand_in_for_the_runs_own(plain, monkeypatch):
    task = digits()
    text = (plain / "recipe.toml").read_text()
    (plain / "recipe.toml").write_text(text.replace('name = "digits"', 'name = "mnist"'))
    monkeypatch.delenv("LATEWOOD_DATA", raising=False)
    monkeypatch.chdir(plain)
    with pytest.raises(
        RequestError, match=r"run: '.*plain' cannot be opened here: task.folder: no"
    ):
        open_run(plain)
    assert open_run(plain, task=task).task is task
    recipe = load_recipe(plain / "recipe.toml", ["task.name=digits"])
    opened = open_run(plain, recipe=recipe)
    assert opened.recipe is recipe and opened.task.name == "digits"


def test_models_of_the_users_own_are_found_beside_the_recipe(tmp_path):
    (tmp_path / "parts_of_opening.py").write_text(PARTS)
    text = RECIPE.replace(
        '{name = "convnet", channels = [4, 6], strides = [2, 2]}', '"parts_of_opening:net"'
    )
    run = trained(tmp_path, text)
    assert holds(open_run(run, trust=True).model, read_tensors(run))
    import sys

    sys.modules.pop("parts_of_opening")
    (tmp_path / "parts_of_opening.py").unlink()
    with pytest.raises(RequestError, match=r"cannot be opened here: model.name.*cannot be imp"):
        open_run(run, trust=True)


def test_what_is_no_run_is_refused(plain, tmp_path, monkeypatch):
    for path, why in (
        (tmp_path / "nothing", "does not exist"),
        (tmp_path, "is in no run's folder"),
        (plain / "nothing.safetensors", "does not exist"),
        (plain / "checkpoints", "holds no weights"),
        (plain / "metrics.jsonl", "not a readable torch file"),
    ):
        with pytest.raises((RequestError, WorkError), match=why):
            open_run(path)
    assert run_of(tmp_path) is None
    with pytest.raises(RequestError, match=r"step: got 4; .*\(0, 3, 6\)"):
        open_run(step(plain, 4))
    shutil.rmtree(plain / "checkpoints")
    with pytest.raises(RequestError, match="a run with a model or a checkpoint"):
        open_run(plain, finalized=False)
    monkeypatch.chdir(plain)
    assert open_run(".").weights.name == "model.safetensors"


def test_damage_is_named(plain, masked):
    for run in (plain, masked):
        (step(run, 3) / "model.safetensors").write_bytes(b"torn")
        with pytest.raises(WorkError, match=r"step-00000003: model\.safetensors is corrupted"):
            open_run(step(run, 3))
        (step(run, 0) / "state.json").write_text("{}")
        with pytest.raises(WorkError, match=r"state\.json is corrupted"):
            open_run(step(run, 0), finalized=False)
        content = (run / "model.safetensors").read_bytes()
        (run / "model.safetensors").write_bytes(content[:100])
        with pytest.raises(WorkError, match=r"model\.safetensors"):
            open_run(run)
    (plain / "recipe.toml").write_text((plain / "recipe.toml").read_text() + "\nspeed = 3\n[steps]")
    with pytest.raises(RequestError):
        open_run(plain)


def test_weights_of_another_model_are_named(plain):
    state = load_file(plain / "model.safetensors")
    wide = torch.zeros(9, *state["conv1.weight"].shape[1:])
    save_file(state | {"conv1.weight": wide}, plain / "model.safetensors")
    with pytest.raises(RequestError, match=r"conv1\.weight has shape \(9, 1, 3, 3\), the model's"):
        open_run(plain)
    (plain / "edits.json").write_text(json.dumps({"format": "something"}))
    with pytest.raises(WorkError, match="edits"):
        open_run(plain)
