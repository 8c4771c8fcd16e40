"""The ticket experiment on CIFAR-10, run through on digits in its place; each claim can fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from latewood.experiments import Results, Workspace
from latewood.experiments.sparsity import ticket_search_cifar10 as experiment
from latewood.training.recipe import parse_recipe

pytestmark = pytest.mark.filterwarnings(
    "ignore:soft and hard disagree", "ignore:.*undecided", "ignore:.*no logit is above 0"
)

SMALL = {
    "task": "digits",
    "model": {"name": "convnet", "channels": [8, 8, 8], "strides": [2, 2, 1]},
    "epochs": 3,
    "batch_size": 64,
    "drop_last": True,
    "device": "cpu",
}


def test_every_claim_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = {**experiment.RECIPE, **SMALL}
    del recipe["channels_last"]
    monkeypatch.setattr(experiment, "RECIPE", recipe)
    monkeypatch.setattr(experiment, "SEEDS", 1)
    monkeypatch.setattr(experiment, "ITERATIONS", {"cpu": 2})
    monkeypatch.setattr(experiment, "INITIAL_LOGIT", 0.02)
    results = experiment.run("cpu", Workspace(tmp_path))
    assert all(claim.measured(results) for claim in experiment.EXPERIMENT.claims)
    # Magnitude pruning in two rounds comes to the ticket's density.
    assert 0 < results.mean("density") < 1
    assert results.mean("iterative density") == pytest.approx(results.mean("density"), abs=0.01)
    assert results.mean("iterative over ticket epochs") == 2
    assert results.values("early density") != results.values("density")
    assert results.mean("dense") > results.mean("untrained") + 0.2

    def never(*arguments: object, **more: object) -> None:
        raise AssertionError("a search that was there was done again")

    monkeypatch.setattr("latewood.experiments.sparsity.ticket_runs.search_tickets", never)
    assert experiment.run("cpu", Workspace(tmp_path)) == results


def test_the_recipe_is_one() -> None:
    assert parse_recipe(experiment.RECIPE).epochs == 10


def test_every_claim_can_fail() -> None:
    good = ("dense", "shuffled", "magnitude", "gradual", "iterative", "early gradual", "hard")
    bad = ("ticket", "recalibrated", "early recalibrated", "early hard")
    rest = ("density", "early density", "iterative density", "iterative over ticket epochs")
    broken = Results(
        {name: [0.9] for name in (*good, *rest)} | {name: [0.1] for name in (*bad, "soft")}
    )
    assert [c.name for c in experiment.EXPERIMENT.claims if c.holds(broken)] == []
