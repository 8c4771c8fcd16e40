"""The ticket experiment: its claims hold at the quick scale, and each of them can fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from latewood.experiments import Results, Workspace
from latewood.experiments.sparsity import ticket_search_digits as experiment

pytestmark = pytest.mark.filterwarnings("ignore:soft and hard disagree", "ignore:.*undecided")


def test_every_claim_of_the_quick_scale_holds(tmp_path_factory: pytest.TempPathFactory) -> None:
    results = experiment.run("quick", Workspace(tmp_path_factory.mktemp("workspace")))
    claims = [claim for claim in experiment.EXPERIMENT.claims if "quick" in claim.scales]
    assert len(claims) >= 8
    assert [(c.name, c.measured(results)) for c in claims if not c.holds(results)] == []


def test_what_only_the_longer_scale_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment, "EPOCHS", {"cpu": 3})
    monkeypatch.setattr(experiment, "SEEDS", {"cpu": 1})
    monkeypatch.setattr(experiment, "MATCHED", {"cpu": ("shuffled", "one_shot", "gradual")})
    monkeypatch.setattr(experiment, "ITERATIONS", 2)
    results = experiment.run("cpu", Workspace(tmp_path))
    named = {**results.measurements, "magnitude": [0.0]}
    assert all(claim.measured(Results(named)) for claim in experiment.EXPERIMENT.claims)
    assert results.mean("iterative density") == pytest.approx(0.64, abs=1e-3)
    assert results.mean("iterative over ticket epochs") == 2
    assert results.mean("iterative over ticket seconds") > 0
    # Without the scale another network is trained, from the same seed and to other masks.
    assert results.values("unscaled density") != results.values("density")
    assert results.values("unscaled hard") != results.values("hard")
    with_scale = {name: results.mean(f"unscaled {name}") for name in ("ticket", "shuffled")}
    assert all(0 < value <= 1 for value in with_scale.values())
    assert results.mean("unscaled supermask density") > 0


def test_every_claim_can_fail() -> None:
    # As if the search had destroyed the network while every baseline had done well.
    good = (
        "dense",
        "soft",
        "shuffled",
        "magnitude",
        "one_shot",
        "gradual",
        "iterative",
        "untrained",
    )
    bad = ("ticket", "hard", "supermask", "first round density", "unscaled density")
    bad += ("unscaled ticket", "unscaled supermask", "unscaled shuffled")
    broken = Results(
        {
            **{name: [0.9] for name in good},
            **{name: [0.1] for name in bad},
            "density": [0.5],
            "unscaled supermask density": [0.5],
            "second round density": [0.5],
            "iterative over ticket epochs": [1.0],
            "iterative over ticket seconds": [1.0],
        }
    )
    assert [c.name for c in experiment.EXPERIMENT.claims if c.holds(broken)] == []
