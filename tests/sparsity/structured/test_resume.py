"""A recipe's run that is taken up in mid-growth ends with the same bits; so does a plain loop."""

import copy
import shutil
import warnings

import pytest
import torch
from torch import nn

from latewood.core import parameter_groups, stored_tensor
from latewood.core.state import load_state, save_state
from latewood.errors import RequestError
from latewood.optim import AvaGrad
from latewood.sparsity import StructuredSparsification
from latewood.training import checkpoints
from latewood.training.fit import fit
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
        train(None, folder=part.path, resume=True, trust=True, show_progress=False)
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


def test_gamma_sees_the_rates_of_the_structures_that_are_there():
    """What AvaGrad remembers of the rates between two steps must not outlive a change of shape."""

    def start():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        method = StructuredSparsification(
            model, batch, budget={"macs": 0.5}, total_steps=12, steps_per_epoch=3
        )
        return model, method

    def train_on(model, method, optimizer):
        def begin(step):
            if step % 3 == 0:
                method.restructure(optimizer)

        def loss(model, batch):
            return model(batch).pow(2).mean()

        fit(model, [batch] * 6, loss, optimizer, methods=[method], before_step=begin)

    batch = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    model, method = start()
    optimizer = AvaGrad(parameter_groups(model, [method]))
    train_on(model, method, optimizer)
    parts = (method, model, optimizer)
    states = copy.deepcopy([part.state_dict() for part in parts])
    other, again = start()
    again.reshape(states[0])
    fresh = AvaGrad(parameter_groups(other, [again]))
    for part, state in zip((again, other, fresh), states, strict=True):
        part.load_state_dict(state)
    train_on(model, method, optimizer)
    train_on(other, again, fresh)
    torch.testing.assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_a_factored_optimizer_state_is_refused_also_with_one_element():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    method = StructuredSparsification(
        model, torch.zeros(1, 4), budget={"macs": 0.5}, total_steps=4, steps_per_epoch=1
    )
    optimizer = torch.optim.SGD(parameter_groups(model, [method]), lr=0.1)
    method.restructure(optimizer)
    for layer in (model[0], model[2]):
        # Adafactor's of a weight with one input or output; a count would have no such axes.
        optimizer.state[stored_tensor(layer, "weight")] = {"row_var": torch.zeros(1, 1)}
    with pytest.raises(RequestError, match=r"optimizer: its row_var of .* has shape \(1, 1\)"):
        for _ in range(4):
            method.step()
            method.restructure(optimizer)
