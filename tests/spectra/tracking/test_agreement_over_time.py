"""Agreement over time from snapshots alone, against the weights that they were taken from."""

import pytest
import torch
from torch import nn

from latewood.errors import RequestError, WorkError
from latewood.spectra import (
    SpectralProbe,
    agreement,
    agreement_over_time,
    factors,
    random_agreement,
)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, groups=2)
        self.head = nn.Linear(40, 30)


STEPS = (0, 2, 4, 6)


def follow(folder, seed=0, steps=STEPS, **options):
    """Weights that move towards an end, the probe's snapshots of them, and the weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net, end = Net(), Net()
    probe = SpectralProbe(net, every=1, folder=folder, **options)
    weights = {}
    for step in steps:
        with torch.no_grad():
            for own, other in zip(net.parameters(), end.parameters(), strict=True):
                own.lerp_(other, step / 6)
        probe.observe(step)
        weights[step] = {
            "conv.weight": net.conv.weight.detach().clone().flatten(1).unflatten(0, (2, 4)),
            "head.weight": net.head.weight.detach().clone(),
        }
    return weights


@pytest.mark.parametrize(
    ("reference", "partners"),
    [
        ("final", {0: 6, 2: 6, 4: 6, 6: 6}),
        ("initial", {0: 0, 2: 0, 4: 0, 6: 0}),
        ("previous", {2: 0, 4: 2, 6: 4}),
        (4, {0: 4, 2: 4, 4: 4, 6: 4}),
    ],
)
@pytest.mark.parametrize("half", [True, False])
def test_is_the_agreement_of_the_weights(tmp_path, reference, partners, half):
    weights = follow(tmp_path, half=half)
    found = agreement_over_time(tmp_path, reference, top=5)
    assert found.steps == tuple(partners)
    assert found.references == tuple(partners.values())
    precision = 1e-3 if half else 1e-6
    for name in ("conv.weight", "head.weight"):
        for row, (step, partner) in enumerate(partners.items()):
            exact = agreement(
                factors(weights[step][name], 16), factors(weights[partner][name], 16), top=5
            )
            diagonal = exact.diagonal.reshape(-1, exact.diagonal.shape[-1]).mean(0)
            assert torch.allclose(found.diagonals[name][row], diagonal, atol=precision)
            score = exact.score.mean().item()
            assert found.scores[name][row].item() == pytest.approx(score, abs=precision)
    assert found.diagonals["head.weight"].shape == (len(partners), 16)
    assert found.baselines == {
        "conv.weight": random_agreement(4, 18),
        "head.weight": random_agreement(30, 40),
    }


def test_ends_where_it_is_compared(tmp_path):
    follow(tmp_path)
    scores = agreement_over_time(tmp_path).scores["head.weight"]
    assert scores[-1].item() == pytest.approx(1, abs=1e-3)
    assert scores[0] < 0.5


def test_another_run(tmp_path):
    one = follow(tmp_path / "one")
    other = follow(tmp_path / "other", seed=5, steps=(2, 3, 6, 8))
    found = agreement_over_time(tmp_path / "one", "same", against=tmp_path / "other")
    assert found.steps == found.references == (2, 6)
    exact = agreement(factors(one[2]["head.weight"], 16), factors(other[2]["head.weight"], 16))
    assert found.scores["head.weight"][0].item() == pytest.approx(exact.score.item(), abs=1e-3)
    found = agreement_over_time(tmp_path / "one", against=tmp_path / "other")
    assert found.references == (8,) * 4


def test_unusable_folders_are_named(tmp_path):
    with pytest.raises(WorkError, match="no snapshots"):
        agreement_over_time(tmp_path / "missing")
    follow(tmp_path / "plain", vectors=0)
    with pytest.raises(WorkError, match="no singular vectors"):
        agreement_over_time(tmp_path / "plain")
    follow(tmp_path / "one", steps=(3,))
    with pytest.raises(WorkError, match="too few"):
        agreement_over_time(tmp_path / "one", "previous")
    SpectralProbe(nn.Linear(40, 30), every=1, folder=tmp_path / "other").observe(3)
    with pytest.raises(WorkError, match="other weights"):
        agreement_over_time(tmp_path / "one", against=tmp_path / "other")


def test_weights_that_grow_are_compared_where_they_fit(tmp_path):
    model = Net()
    probe = SpectralProbe(model, every=1, folder=tmp_path, vectors=6)
    for step, (inputs, width) in enumerate([(40, 4), (40, 30), (41, 30), (41, 30)]):
        model.head = nn.Linear(inputs, width)
        probe.observe(step)
    found = agreement_over_time(tmp_path)
    assert found.scores["head.weight"].isnan().tolist() == [True, True, False, False]
    assert found.diagonals["head.weight"].shape == (4, 6)
    assert not found.scores["conv.weight"].isnan().any()
    assert found.baselines["head.weight"] == random_agreement(30, 41)
    before = agreement_over_time(tmp_path, "previous")
    assert before.scores["head.weight"].isnan().tolist() == [True, True, False]
    first = agreement_over_time(tmp_path, "initial")
    assert first.diagonals["head.weight"].shape == (4, 4)


@pytest.mark.parametrize("reference", [5, "last"])
def test_unknown_references_are_refused(tmp_path, reference):
    follow(tmp_path)
    with pytest.raises(RequestError, match="0, 2, 4, 6"):
        agreement_over_time(tmp_path, reference)
