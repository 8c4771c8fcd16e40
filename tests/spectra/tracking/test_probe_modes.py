"""The probe beside the training, tracking vectors, measuring pairs, on models that change."""

import math
import threading

import pytest
import torch
from torch import nn

from latewood.errors import WorkError
from latewood.spectra import (
    SpectralProbe,
    factors,
    model_alignment,
    read_alignments,
    read_snapshot,
    snapshot_path,
    snapshot_paths,
)
from latewood.spectra.tracking.matrix_measurement import MatrixMeasurer


def network(width=80):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(60, width), nn.ReLU(), nn.Linear(width, 70))


def move(model, seed, size=0.02):
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            step = torch.randn(weight.shape, generator=noise)
            weight += size * weight.norm() / step.norm() * step


def walk(spectral, model, steps):
    """What a probe says while the weights move."""
    said = []
    for step in range(steps):
        said += spectral.observe(step)
        move(model, step)
    return said + spectral.finish()


def snapshots(folder):
    return {
        step: [
            (s.name, s.values.tobytes(), s.left.tobytes()) for s in read_snapshot(p, vectors=True)
        ]
        for step, p in snapshot_paths(folder).items()
    }


@pytest.mark.parametrize("options", [{}, {"pairs": "auto"}, {"full_every": 3}])
def test_a_worker_finds_what_the_caller_would(tmp_path, options):
    """Later, and of the weights of the right moment, though they have moved on since."""
    said = {}
    for worker in (False, True):
        model, folder = network(), tmp_path / str(worker)
        spectral = SpectralProbe(model, every=2, folder=folder, worker=worker, threads=1, **options)
        said[worker] = walk(spectral, model, 9)
    assert snapshots(tmp_path / "True") == snapshots(tmp_path / "False")
    assert [observation.step for observation in said[True]] == [0, 2, 4, 6, 8]
    for observation in said[True]:
        assert observation.values.pop("dropped") == 0
        assert observation.values.pop("lag", 0) >= 0
    assert said[True] == said[False]


@pytest.mark.parametrize("queue", [1, 2])
def test_results_come_at_later_observations_and_at_the_end(queue):
    """Not whenever they are ready, so that two runs write the same log."""
    spectral = SpectralProbe(network(), every=3, worker=True, queue=queue)
    said = {step: spectral.observe(step) for step in range(10)}
    later = {
        step: (observation.step, observation.values["lag"])
        for step, observations in said.items()
        for observation in observations
    }
    assert later == ({3: (0, 3), 6: (3, 3), 9: (6, 3)} if queue == 1 else {6: (0, 6), 9: (3, 6)})
    rest = spectral.finish()
    assert [observation.step for observation in rest] == ([9] if queue == 1 else [6, 9])
    assert all("lag" not in observation.values for observation in rest)
    assert spectral.finish() == []


@pytest.fixture
def slow(monkeypatch):
    """Measurements that take until they are let go."""
    release, begun = threading.Event(), threading.Event()
    measure = MatrixMeasurer.measure

    def waiting(self, *args, **options):
        begun.set()
        assert release.wait(20)
        return measure(self, *args, **options)

    monkeypatch.setattr(MatrixMeasurer, "measure", waiting)
    yield release, begun
    release.set()


def test_dropped_observations_are_counted(slow):
    release, begun = slow
    model = network()
    spectral = SpectralProbe(model, every=1, worker=True, queue=2, policy="drop-oldest")
    spectral.observe(0)
    assert begun.wait(20)
    for step in range(1, 5):
        assert spectral.observe(step) == []
    release.set()
    assert [observation.step for observation in spectral.finish()] == [0, 4]
    assert spectral.dropped == 3


def test_auto_waits_for_the_observation_under_way(slow):
    release, _ = slow
    spectral = SpectralProbe(
        network(), every="auto", worker=True, queue=2, total_steps=50, budget=0.99
    )
    for step in range(50):
        assert spectral.observe(step) == []
    assert spectral._worker.pending == 1
    spectral.observe(50)
    release.set()
    assert [observation.step for observation in spectral.finish()] == [0, 50]
    assert spectral.overhead > 0


def test_what_fails_in_the_worker_is_named_in_the_training(tmp_path):
    model = network()
    spectral = SpectralProbe(model, every=1, folder=tmp_path / "file", worker=True)
    (tmp_path / "file").write_text("")
    spectral.observe(0)
    with pytest.raises(WorkError, match="file"):
        spectral.finish()


def test_broken_weights_stop_no_worker():
    model = network()
    model[0].weight.data[0, 0] = math.nan
    spectral = SpectralProbe(model, every=1, worker=True, pairs="auto", full_every=2)
    found = [observation.values for observation in walk(spectral, model, 3)]
    assert len(found) == 3
    assert all(each["not_finite/0.weight"] == 1 for each in found)
    assert math.isnan(found[0]["alignment/0.weight->2.weight"])
    assert 0.7 < found[0]["effective_rank/2.weight"] < 0.9


def test_full_and_tracked_observations(tmp_path):
    model = network(100)
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in (model[0], model[2]):
            spikes = torch.randn(100, 8, generator=noise) @ torch.randn(8, 100, generator=noise)
            layer.weight += 0.2 * spikes[: layer.weight.shape[0], : layer.weight.shape[1]]
    spectral = SpectralProbe(
        model, every=1, folder=tmp_path, vectors=6, full_every=4, half=False, total_steps=6
    )
    said = walk(spectral, model, 7)
    full = [any(key.startswith("effective_rank/") for key in each.values) for each in said]
    assert full == [True, False, False, False, True, False, True]
    assert "largest_value/0.weight" in said[1].values
    spectra = [read_snapshot(snapshot_path(tmp_path, s), vectors=True) for s in (1, 4)]
    assert [s.method for s in spectra[0]] == ["warm"] * 2
    assert [s.method for s in spectra[1]] == ["gram"] * 2
    assert [s.values.shape for s in spectra[0]] == [(6,), (6,)]
    assert [s.values.shape for s in spectra[1]] == [(60,), (70,)]
    assert spectra[0][0].left.shape == (100, 6)


def test_parts_take_turns(tmp_path):
    model = nn.Sequential(*(nn.Linear(40, 40) for _ in range(5)))
    whole = SpectralProbe(model, every=1, pairs="auto").observe(0)[0].values
    spectral = SpectralProbe(model, every=1, folder=tmp_path, pairs="auto", parts=2, total_steps=6)
    said = walk(spectral, model, 7)
    assert {key: said[0].values[key] for key in whole} == whole
    layers = [[s.name[0] for s in read_snapshot(snapshot_path(tmp_path, t))] for t in range(7)]
    odd, even = ["1", "3"], ["0", "2", "4"]
    assert layers == [list("01234"), odd, even, odd, even, odd, list("01234")]
    pairs = [[name[0] for name in read_alignments(snapshot_path(tmp_path, t))] for t in range(7)]
    assert pairs == [list("0123"), odd, ["0", "2"], odd, ["0", "2"], odd, list("0123")]
    few = SpectralProbe(model, every=1, parts=9)
    counts = [len(observation.values) for observation in walk(few, model, 6)]
    assert counts == [5, 1, 1, 1, 1, 1]


def test_what_takes_turns_is_tracked_from_its_own_last_observation(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(*(nn.Linear(40, 40) for _ in range(3)))
    with torch.no_grad():
        for layer in model:
            layer.weight += 1
    spectral = SpectralProbe(
        model, every=1, folder=tmp_path, vectors=1, parts=2, full_every=2, tolerance=0.01
    )
    walk(spectral, model, 5)
    spectra = [read_snapshot(snapshot_path(tmp_path, step)) for step in range(5)]
    methods = [{s.method for s in each} for each in spectra]
    # The first one and the first round are full, the second tracks, the third is full again.
    assert methods == [{"gram"}, {"gram"}, {"warm"}, {"warm"}, {"gram"}]


def test_alignments_are_those_of_the_model(tmp_path):
    model = network()
    said = SpectralProbe(model, every=1, folder=tmp_path, pairs="auto").observe(0)[0].values
    (expected,) = model_alignment(model, k=16).values()
    assert said["alignment/0.weight->2.weight"] == pytest.approx(expected.score.item())
    (kept,) = read_alignments(snapshot_path(tmp_path, 0)).values()
    assert kept.diagonal == pytest.approx(expected.diagonal.tolist())
    assert kept.baseline == expected.baseline


def test_parts_of_attention_serve_alignments_and_are_not_kept(tmp_path):
    model = nn.Sequential(nn.Embedding(9, 8), nn.MultiheadAttention(8, 2))
    said = SpectralProbe(model, every=1, folder=tmp_path, pairs="auto").observe(0)[0].values
    for name, found in model_alignment(model, k=16).items():
        assert said[f"alignment/{name}"] == pytest.approx(found.score.item())
    names = [s.name for s in read_snapshot(snapshot_path(tmp_path, 0))]
    assert names == ["0.weight", "1.in_proj_weight", "1.out_proj.weight"]


@pytest.mark.parametrize("worker", [False, True])
def test_layers_may_grow_shrink_and_go(tmp_path, worker):
    model = network()
    spectral = SpectralProbe(
        model, every=1, folder=tmp_path, vectors=4, full_every=2, pairs="auto", worker=worker
    )
    spectral.observe(0)
    model[0], model[2] = nn.Linear(60, 90), nn.Linear(90, 70)
    spectral.observe(1)
    model[0].weight = nn.Parameter(model[0].weight[:70].detach())
    spectral.observe(2)
    model[2] = nn.Identity()
    spectral.observe(3)
    spectral.finish()
    spectra = [{s.name: s for s in read_snapshot(snapshot_path(tmp_path, t))} for t in range(4)]
    assert [s["0.weight"].shape for s in spectra] == [(80, 60), (90, 60), (70, 60), (70, 60)]
    # Of another shape than before: nothing to track, so the whole spectrum.
    assert spectra[1]["0.weight"].complete
    assert list(spectra[3]) == ["0.weight"]
    pairs = [list(read_alignments(snapshot_path(tmp_path, t))) for t in range(4)]
    assert pairs == [["0.weight->2.weight"], ["0.weight->2.weight"], [], []]


def test_the_dtype_of_the_weights_is_kept(tmp_path):
    model = network().bfloat16()
    SpectralProbe(model, every=1, folder=tmp_path).observe(0)
    (first, _) = read_snapshot(snapshot_path(tmp_path, 0))
    assert (first.dtype, first.method) == ("bfloat16", "gram")
    exact = torch.linalg.svdvals(model[0].weight.detach().double())
    assert (abs(first.values - exact.numpy()) <= first.errors + 1e-14).all()


def test_split_attention_is_kept_by_part(tmp_path):
    model = nn.MultiheadAttention(8, 2)
    SpectralProbe(model, every=1, folder=tmp_path, split="heads").observe(0)
    spectra = {s.name: s for s in read_snapshot(snapshot_path(tmp_path, 0))}
    assert spectra["in_proj_weight[query heads]"].shape == (2, 4, 8)
    whole = factors(model.in_proj_weight[:4], 0).values
    assert spectra["in_proj_weight[query heads]"].values[0] == pytest.approx(whole.numpy())
