"""The probe sees every weight matrix as it is used, and changes nothing by looking."""

import copy
import dataclasses
import inspect
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

from latewood.core.protocols import Probe
from latewood.errors import RequestError
from latewood.spectra import (
    ObservationSettings,
    SnapshotSettings,
    SpectralProbe,
    Views,
    WorkerSettings,
    effective_rank,
    factors,
    read_snapshot,
    singular_values,
    snapshot_path,
)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.positions = nn.Parameter(torch.zeros(1, 5, 6))
        self.attention = nn.MultiheadAttention(6, 2, add_bias_kv=True)
        self.conv = nn.Conv2d(4, 8, 3, groups=2)
        self.norm = nn.LayerNorm((6, 6))
        self.batch_norm = nn.BatchNorm2d(8)
        self.lstm = nn.LSTM(6, 3)
        self.head = nn.Linear(6, 4)


class Mask(nn.Module):
    def __init__(self, mask):
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight):
        return weight * self.mask


class Noise(nn.Module):
    def forward(self, weight):
        return weight + torch.randn_like(weight)


@pytest.fixture
def net():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Net()


def test_covers_every_matrix_but_gains_and_biases(net):
    probe = SpectralProbe(net, every=1)
    assert isinstance(probe, Probe)
    (observation,) = probe.observe(0)
    assert observation.step == 0
    assert probe.finish() == [] and probe.every_process is False
    metrics = observation.values
    assert metrics.pop("collapsed/positions") == 1
    names = [key.removeprefix("effective_rank/") for key in metrics]
    expected = [
        name
        for name, parameter in net.named_parameters()
        if parameter.ndim >= 2 and not name.startswith("norm") and "bias" not in name
    ]
    assert sorted(names) == sorted(expected)
    assert len(names) == 8


def test_values_are_those_of_the_measures(net):
    metrics = SpectralProbe(net, every=1).observe(0)[0].values
    head = effective_rank(singular_values(net.head.weight)).item()
    assert metrics["effective_rank/head.weight"] == head
    groups = effective_rank(singular_values(net.conv.weight.flatten(1).unflatten(0, (2, 4))))
    assert groups.shape == (2,)
    assert metrics["effective_rank/conv.weight"] == groups.mean().item()
    assert metrics["effective_rank/positions"] == 0
    printed = SpectralProbe(net, every=1, kind="entropy").observe(0)[0].values
    assert printed["effective_rank/head.weight"] == pytest.approx(math.log(head * 4) / 4)


def test_only_due_steps_are_observed(net, tmp_path):
    probe = SpectralProbe(net, every=3, include=("head",), folder=tmp_path)
    assert [bool(probe.observe(step)) for step in range(7)] == [True, False, False] * 2 + [True]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"step-{step:08d}.parquet" for step in (0, 3, 6)
    ]


def test_snapshot_holds_the_singular_values(net, tmp_path):
    SpectralProbe(net, every=1, folder=tmp_path).observe(7)
    spectra = {s.name: s for s in read_snapshot(tmp_path / "step-00000007.parquet")}
    assert spectra["conv.weight"].shape == (2, 4, 18)
    expected = singular_values(net.lstm.weight_hh_l0).numpy()
    assert np.allclose(spectra["lstm.weight_hh_l0"].values, expected, rtol=1e-6)
    assert spectra["lstm.weight_hh_l0"].left is None


@pytest.mark.parametrize("half", [True, False])
def test_snapshot_holds_the_first_vectors(net, tmp_path, half):
    SpectralProbe(net, every=1, folder=tmp_path, vectors=3, half=half).observe(7)
    spectra = {s.name: s for s in read_snapshot(snapshot_path(tmp_path, 7), vectors=True)}
    found = factors(net.conv.weight.flatten(1).unflatten(0, (2, 4)), 3)
    for side in ("left", "right"):
        kept = getattr(spectra["conv.weight"], side)
        assert kept.dtype == (np.float16 if half else np.float32)
        exact = getattr(found, side).numpy()
        assert np.allclose(kept, exact, atol=5e-4 if half else 0)
    assert spectra["positions"].left.shape == (5, 3)
    assert not spectra["positions"].left.any()


def test_no_vectors_are_kept_where_none_are_wanted(net, tmp_path):
    SpectralProbe(net, every=1, folder=tmp_path, vectors=0).observe(0)
    assert all(s.left is None for s in read_snapshot(snapshot_path(tmp_path, 0), vectors=True))
    assert pq.read_schema(snapshot_path(tmp_path, 0)).names[-1] == "dtype"


def test_ranks_do_not_depend_on_what_is_kept(net, tmp_path):
    plain = SpectralProbe(net, every=1).observe(0)[0].values
    kept = SpectralProbe(net, every=1, folder=tmp_path).observe(0)[0].values
    assert kept == pytest.approx(plain, abs=1e-6)


def test_vectors_that_nobody_reads_are_not_made(net, tmp_path, monkeypatch):
    asked = []

    def counted(matrix, k):
        asked.append(k)
        return factors(matrix, k)

    bare = SpectralProbe(net, every=1)
    kept = SpectralProbe(net, every=1, folder=tmp_path, vectors=3)
    monkeypatch.setattr("latewood.spectra.tracking.matrix_measurement.factors", counted)
    bare.observe(0)
    assert set(asked) == {0}
    asked.clear()
    kept.observe(0)
    assert set(asked) == {3}


def test_epoch_is_the_end_of_each(net):
    probe = SpectralProbe(net, every="epoch", steps_per_epoch=4, include=("head",))
    assert [step for step in range(13) if probe.observe(step)] == [0, 4, 8, 12]
    assert 0 < probe.overhead < 1
    assert SpectralProbe(net, every=2).overhead == 0


def test_include_and_exclude(net):
    probe = SpectralProbe(net, every=1, include=("lstm", "head.*"), exclude=("*_hh_*",))
    assert list(probe.observe(0)[0].values) == [
        "effective_rank/lstm.weight_ih_l0",
        "effective_rank/head.weight",
    ]
    with pytest.raises(RequestError, match="heads"):
        SpectralProbe(net, every=1, include=("heads",))


def test_masked_weights_are_seen_masked(net):
    probe = SpectralProbe(net, every=1)
    mask = torch.zeros(4, 6)
    mask[0] = 1
    parametrize.register_parametrization(net.head, "weight", Mask(mask))
    rank_one = probe.observe(0)[0].values["effective_rank/head.weight"]
    assert rank_one == pytest.approx(1 / 4, abs=1e-5)
    (again,) = SpectralProbe(net, every=1).observe(0)
    assert again.values["effective_rank/head.weight"] == rank_one


def test_changes_nothing(net, tmp_path):
    parametrize.register_parametrization(net.head, "weight", Noise())
    spectral_norm(net.conv)
    net.train()
    probe = SpectralProbe(net, every=1, folder=tmp_path)
    net.conv(torch.ones(1, 4, 5, 5)).sum().backward()
    state = copy.deepcopy(net.state_dict())
    gradients = {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}
    assert gradients
    modes = [module.training for module in net.modules()]
    random_state = torch.get_rng_state()
    probe.observe(0)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [module.training for module in net.modules()] == modes
    assert list(net.state_dict()) == list(state)
    for name, value in net.state_dict().items():
        assert torch.equal(value, state[name]), name
    after = {n: p.grad for n, p in net.named_parameters() if p.grad is not None}
    assert after.keys() == gradients.keys()
    assert all(torch.equal(after[name], gradients[name]) for name in gradients)


def test_leaves_no_value_in_an_active_cache(net):
    parametrize.register_parametrization(net.head, "weight", Mask(torch.ones(4, 6)))
    probe = SpectralProbe(net, every=1)
    with parametrize.cached():
        probe.observe(0)
        assert net.head.weight.requires_grad


def test_broken_weights_give_nan_and_no_error(net, tmp_path):
    net.head.weight.data[0, 0] = torch.inf
    metrics = SpectralProbe(net, every=1, folder=tmp_path).observe(0)[0].values
    assert math.isnan(metrics["effective_rank/head.weight"])
    assert metrics["not_finite/head.weight"] == 1
    assert "not_finite/conv.weight" not in metrics
    spectra = {s.name: s for s in read_snapshot(snapshot_path(tmp_path, 0), vectors=True)}
    assert not spectra["head.weight"].finite
    assert np.isnan(spectra["head.weight"].left).all()
    assert spectra["positions"].collapsed
    assert not math.isnan(metrics["effective_rank/conv.weight"])


def test_settings_are_the_arguments_in_groups(net, tmp_path):
    """Both forms of the constructor observe the same, and no argument belongs to two groups."""
    grouped = SpectralProbe.from_settings(
        net,
        ObservationSettings("epoch", full_every=2, steps_per_epoch=3),
        views=Views(exclude=("head",), conv="taps"),
        snapshot_settings=SnapshotSettings(tmp_path / "grouped", vectors=2, half=False),
        worker_settings=WorkerSettings(worker=True, threads=1),
        pairs=[("embedding.weight", "lstm.weight_ih_l0")],
    )
    flat = SpectralProbe(
        net,
        every="epoch",
        full_every=2,
        steps_per_epoch=3,
        exclude=("head",),
        conv="taps",
        folder=tmp_path / "flat",
        vectors=2,
        half=False,
        worker=True,
        threads=1,
        pairs=[("embedding.weight", "lstm.weight_ih_l0")],
    )
    for step in range(7):
        assert grouped.observe(step) == flat.observe(step)
    assert grouped.finish() == flat.finish() != []
    for path in (tmp_path / "flat").iterdir():
        assert (tmp_path / "grouped" / path.name).read_bytes() == path.read_bytes()
    groups = (ObservationSettings, Views, SnapshotSettings, WorkerSettings)
    names = [field.name for group in groups for field in dataclasses.fields(group)]
    arguments = inspect.signature(SpectralProbe).parameters
    assert sorted([*names, "model", "pairs", "example_inputs", "shard"]) == sorted(arguments)
    for field in (field for group in groups for field in dataclasses.fields(group)):
        if field.name != "every":
            assert arguments[field.name].default == field.default


def test_bad_arguments_are_refused(net):
    with pytest.raises(RequestError, match="every"):
        SpectralProbe(net, every=0)
    with pytest.raises(RequestError, match="kind"):
        SpectralProbe(net, every=1, kind="printed")
    for options in (
        {"vectors": -1},
        {"vectors": 0, "pairs": "auto"},
        {"vectors": 0, "full_every": 2},
        {"full_every": 0},
        {"parts": 0},
        {"tolerance": 0},
        {"worker": "always"},
        {"queue": 0},
        {"policy": "wait"},
        {"threads": 0},
        {"split": "thirds"},
        {"pairs": [("head.weight", "missing.weight")]},
        {"pairs": [("head.weight", "conv.weight")]},
    ):
        with pytest.raises(RequestError, match=next(iter(options))):
            SpectralProbe(net, every=1, **options)
