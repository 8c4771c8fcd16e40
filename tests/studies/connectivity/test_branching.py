"""Branches of a run differ in the order of the data, and in nothing else."""

import json
import shutil
from functools import partial

import pytest
import torch

from latewood.core import Epochs
from latewood.errors import RequestError, WorkError
from latewood.studies.connectivity.branching import branch_run as branch_any_run
from latewood.training import checkpoints, observers, train
from latewood.training.recipe import parse_recipe, read_recipe
from latewood.training.run_folder import RunFolder

PARTS = """
import torch
from torch import nn
from latewood.tasks import Classification, Task, TensorDataset

def task(*, alike: bool = False):
    noise = torch.Generator().manual_seed(0)
    images, labels = torch.randn(20, 1, 4, 4, generator=noise), torch.arange(20) % 4
    if alike:
        images, labels = images[:1].expand(20, 1, 4, 4).clone(), labels[:1].expand(20).clone()
    def augment(batch, generator):
        return batch[0] + 0.1 * torch.randn(batch[0].shape, generator=generator), batch[1]
    return Task(
        name="noise", train=TensorDataset(images, labels),
        validation=TensorDataset(images, labels), objective=Classification(), headline="accuracy",
        model="parts_of_branching:net", example_inputs=(images[:1],), augment=augment,
    )

def net():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3),
        nn.Linear(8, 4),
    )
"""

RECIPE = {
    "task": "parts_of_branching:task",
    "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9},
    "schedule": {"name": "cosine"},
    "probes": [{"name": "spectral", "every": 3}],
    "epochs": 3,
    "batch_size": 4,
    "seed": 3,
    "device": "cpu",
    "keep_at": [0, 7],
}

# The runs of these tests name modules of their own.
branch_run = partial(branch_any_run, trust=True)


@pytest.fixture
def trunk_of(tmp_path):
    (tmp_path / "parts_of_branching.py").write_text(PARTS)

    def make(**changes):
        recipe = parse_recipe(RECIPE | changes, [tmp_path])
        return train(recipe, folder=tmp_path / "trunk", show_progress=False).folder

    return make


def final(run):
    return checkpoints.latest(run.checkpoints).model_state()


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def rows(run):
    found = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
    seen = [{k: v for k, v in row.items() if k != "seconds"} for row in found]
    # How late a probe's worker was is the machine's business.
    late = ("lag", "dropped", "overhead")
    rows = [{k: v for k, v in row.items() if k not in late} for row in seen]
    return sorted(rows, key=lambda row: (row["step"], row["kind"]))


def test_split_points_of_the_paper():
    # CIFAR-10 in batches of 128: 45,000 images are 352 steps an epoch.
    assert checkpoints.split_points(Epochs(352)) == (
        *(0, 70, 140, 210, 280),
        *(352, 704, 1056, 1408, 1760),
    )
    assert checkpoints.split_points(Epochs(3)) == (0, 3, 6, 9, 12, 15)


def test_named_steps_are_kept_beside_the_last_two(trunk_of):
    run = trunk_of(checkpoint_every=2)
    assert checkpoints.steps(run.checkpoints) == [0, 7, 14, 15]


def test_split_points_are_kept(trunk_of):
    run = trunk_of(split_points=True, keep_at=[], epochs=6)
    assert checkpoints.steps(run.checkpoints) == [0, 1, 2, 3, 4, 5, 10, 15, 20, 25, 30]


@pytest.mark.parametrize("step", [0, 7])
def test_the_branch_of_the_trunks_own_order_is_the_trunk(trunk_of, tmp_path, step):
    run = trunk_of()
    (branch,) = branch_run(run, step, seeds=[3], folder=tmp_path / "branches")
    assert branch.folder.path == tmp_path / "branches" / "order-3"
    assert same(final(run), final(branch.folder))
    assert rows(run) == rows(branch.folder)
    spectra = [sorted(p.name for p in r.spectra_folder.iterdir()) for r in (run, branch.folder)]
    assert spectra[0] == spectra[1]
    assert branch.summary["evaluations"] == run.summary["evaluations"]


def test_other_orders_share_the_beginning_only(trunk_of, tmp_path):
    run = trunk_of()
    one, two = branch_run(run, 7, seeds=[4, 5], folder=tmp_path / "branches")
    assert not same(final(one.folder), final(two.folder))
    assert not same(final(one.folder), final(run))
    assert [r for r in rows(one.folder) if r["step"] <= 7] == [
        r for r in rows(run) if r["step"] <= 7
    ]
    assert read_recipe(one.folder.recipe_path).order_seed == 4
    (again,) = branch_run(run, 7, seeds=[4], folder=tmp_path / "again")
    assert same(final(one.folder), final(again.folder))


def test_where_the_order_does_not_matter_branches_are_the_same_bits(trunk_of, tmp_path):
    # Dropout and augmentation are drawn anew at every step, and must not depend on the branch.
    run = trunk_of(task={"name": "parts_of_branching:task", "alike": True})
    one, two = branch_run(run, 7, seeds=[4, 5], folder=tmp_path / "branches")
    assert same(final(one.folder), final(two.folder))
    assert same(final(one.folder), final(run))


def test_a_perturbed_branch_starts_beside_the_trunk(trunk_of, tmp_path):
    run = trunk_of(recalibration_batches=5)
    moved = branch_run(run, 7, seeds=[4, 5], folder=tmp_path / "moved", perturb=0.5)
    trunk = checkpoints.at_step(run.checkpoints, 7)
    starts = [checkpoints.at_step(each.folder.checkpoints, 7) for each in moved]
    own, (one, other) = trunk.model_state(), (start.model_state() for start in starts)
    changed = {name for name in own if not torch.equal(own[name], one[name])}
    statistics = {f"2.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert changed == {"1.weight"} | statistics
    before, after = own["1.weight"].flatten(), one["1.weight"].flatten()
    assert after.norm().item() == pytest.approx(before.norm().item(), rel=1e-5)
    # 1 / sqrt(1 + 0.5^2), and a little, as 128 entries are few.
    assert torch.cosine_similarity(before, after, dim=0).item() == pytest.approx(0.894, abs=0.05)
    assert not torch.equal(one["1.weight"], other["1.weight"])
    kept, taken = (
        s.state()["optimizer"]["state"][0]["momentum_buffer"] for s in (trunk, starts[0])
    )
    assert torch.equal(kept, taken)
    assert not same(final(moved[0].folder), final(moved[1].folder))
    (plain,) = branch_run(run, 7, seeds=[4], folder=tmp_path / "plain", perturb=0.0)
    assert same(checkpoints.at_step(plain.folder.checkpoints, 7).model_state(), own)
    (finished,) = branch_run(run, 7, seeds=[4], folder=tmp_path / "moved", perturb=0.5)
    assert finished.model is None
    for strength in (0.0, 1.0):
        with pytest.raises(RequestError, match="from step 7"):
            branch_run(run, 7, seeds=[4], folder=tmp_path / "moved", perturb=strength)
    for strength in (-1.0, float("nan"), float("inf")):
        with pytest.raises(RequestError, match="perturb"):
            branch_run(run, 7, seeds=[4], folder=tmp_path / "none", perturb=strength)
    assert not (tmp_path / "none").exists()


def test_an_interrupted_branch_goes_on(trunk_of, tmp_path, monkeypatch):
    run = trunk_of(checkpoint_every=2)
    (whole,) = branch_run(run, 7, seeds=[4], folder=tmp_path / "whole")
    keep_state = observers.keep_state

    def stop(session):
        keep_state(session)
        if session.step == 11:
            raise WorkError("stopped")

    monkeypatch.setattr(observers, "keep_state", stop)
    with pytest.raises(WorkError, match="stopped"):
        branch_run(run, 7, seeds=[4], folder=tmp_path / "branches")
    monkeypatch.setattr(observers, "keep_state", keep_state)
    (branch,) = branch_run(run, 7, seeds=[4], folder=tmp_path / "branches")
    assert same(final(whole.folder), final(branch.folder))
    assert rows(whole.folder) == rows(branch.folder)
    (finished,) = branch_run(run, 7, seeds=[4], folder=tmp_path / "branches")
    assert finished.model is None
    with pytest.raises(RequestError, match="from step 0"):
        branch_run(run, 0, seeds=[4], folder=tmp_path / "branches")


def test_bad_requests_are_refused(trunk_of, tmp_path, monkeypatch):
    with pytest.raises(RequestError, match="run"):
        branch_run(RunFolder(tmp_path / "nothing"), 0, seeds=[1], folder=tmp_path / "branches")
    with pytest.raises(RequestError, match=r"keep_at.*15"):
        trunk_of(keep_at=[16])
    run = trunk_of()
    for seeds in ([], [1, 1], [-1], [2**63]):
        with pytest.raises(RequestError, match="seeds"):
            branch_run(run, 0, seeds=seeds, folder=tmp_path / "branches")
    with pytest.raises(RequestError, match=r"0, 7, 15"):
        branch_run(run, 3, seeds=[1], folder=tmp_path / "branches")
    with monkeypatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        with pytest.raises(RequestError, match="processes"):
            branch_run(run, 0, seeds=[1], folder=tmp_path / "branches")
    (run.checkpoints / "step-00000007" / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(WorkError, match="corrupted"):
        branch_run(run, 7, seeds=[1], folder=tmp_path / "branches")
    (tmp_path / "branches" / "order-1").mkdir(parents=True)
    (tmp_path / "branches" / "order-1" / "mine.txt").touch()
    with pytest.raises(RequestError, match="not empty"):
        branch_run(run, 0, seeds=[1], folder=tmp_path / "branches")
    assert [entry.name for entry in (tmp_path / "branches").iterdir()] == ["order-1"]
    shutil.rmtree(tmp_path / "branches")
