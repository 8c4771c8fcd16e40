"""A recipe's run that is taken up in mid-growth ends with the same bits; so does a plain loop."""

import copy
import shutil
import warnings

import torch

from latewood.core.state import load_state, save_state
from latewood.training import checkpoints
from latewood.training.run import train
from latewood.training.run_folder import RunFolder

PARTS = """
import torch
from torch import nn
from latewood.tasks import TensorDataset
from latewood.models import resnet20
from latewood.tasks import Classification, Task

def task():
    noise = torch.Generator().manual_seed(0)
    images, labels = torch.randn(48, 3, 8, 8, generator=noise), torch.arange(48) % 4
    return Task(
        name="noise", train=TensorDataset(images, labels), validation=TensorDataset(images, labels),
        objective=Classification(), headline="accuracy", model="parts_of_growing:net",
        example_inputs=(images[:1],),
    )

def net():
    return resnet20(width=0.25, num_classes=4)
"""

RECIPE = """
task = "parts_of_growing:task"
epochs = 8
batch_size = 16
checkpoint_every = 2
keep_checkpoints = 20
clip_norm = 1.0
device = "cpu"

[optimizer]
name = "avagrad"
lr = 0.01

[schedule]
name = "cosine"

[[methods]]
name = "structured_sparsification"
budget = { parameters = 0.5 }
logit_lr = 0.5
growth_logit = -0.5
freeze = 0.7

[[probes]]
name = "spectral"
every = 6
"""


def test_a_run_taken_up_anywhere_ends_with_the_same_bits(tmp_path, monkeypatch):
    (tmp_path / "parts_of_growing.py").write_text(PARTS)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    monkeypatch.syspath_prepend(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train(tmp_path / "recipe.toml", folder=tmp_path / "whole", show_progress=False)
    whole = RunFolder(tmp_path / "whole")
    rows = [row for row in whole.read_metrics() if row["kind"] == "method"]
    sizes = [row["structured_sparsification/parameters"] for row in rows]
    assert len(set(sizes[:6])) > 3 and sizes[0] < sizes[5]
    steps = checkpoints.steps(whole.checkpoints)
    # Inside an epoch of growth, at the freeze's eve, and after it.
    for step in (8, 18, 20):
        assert step in steps
        part = RunFolder(tmp_path / f"from-{step}")
        shutil.copytree(whole.path, part.path)
        for name in (part.summary_path, part.model_path):
            name.unlink()
        checkpoints.discard_after(part.checkpoints, step)
        train(None, folder=part.path, resume=True, show_progress=False)
        assert part.model_path.read_bytes() == whole.model_path.read_bytes()

        def lasting(run):
            return [
                {key: value for key, value in row.items() if key != "seconds"}
                for row in run.read_metrics()
            ]

        assert lasting(part) == lasting(whole)


def test_a_plain_loop_goes_on_from_its_state(runs, tmp_path):
    one = runs("resnet20", "adamw", epochs=10)
    for _ in range(3):
        one.epoch()
    one.method.restructure(one.optimizer)
    one.step()
    state = {
        "model": dict(one.model.state_dict()),
        "optimizer": one.optimizer.state_dict(),
        "method": one.method.state_dict(),
    }
    save_state(tmp_path / "state", state)
    state = load_state(tmp_path / "state")
    two = runs("resnet20", "adamw", epochs=10)
    two.method.reshape(state["method"])
    two.model.load_state_dict(state["model"])
    two.optimizer.load_state_dict(state["optimizer"])
    two.method.load_state_dict(state["method"])
    for run in (one, two):
        run.step()
        run.step()
        for _ in range(6):
            run.epoch()
        run.method.finalize()
    mine, other = one.model.state_dict(), two.model.state_dict()
    assert mine.keys() == other.keys()
    assert all(torch.equal(mine[name], other[name]) for name in mine)


def test_a_copy_of_the_model_in_mid_growth_stands_alone(runs):
    run = runs("convnet", epochs=20, growth_logit=0.0)
    run.epoch()
    run.epoch()
    twin = copy.deepcopy(run.model).eval()
    with torch.no_grad():
        before = run.model.eval()(*run.inputs)
        assert torch.equal(twin(*run.inputs), before)
    run.model.train()
    run.epoch()
    with torch.no_grad():
        assert torch.equal(twin(*run.inputs), before)
