"""The experiment on CIFAR-10, run through on digits in its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from latewood.experiments import Results, Workspace
from latewood.experiments.sparsity import continuous_sparsification_cifar10 as experiment


def test_every_claim_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {
        "task": {"name": "digits"},
        "model": {"name": "convnet", "channels": [8, 8, 8]},
        "epochs": 3,
        "batch_size": 32,
        "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9},
    }
    monkeypatch.setattr(experiment, "RECIPE", small)
    monkeypatch.setattr(experiment, "METHOD", experiment.METHOD | {"initial_logit": 0.1})
    results = experiment.run("full", Workspace(tmp_path))
    assert all(claim.measured(results) for claim in experiment.EXPERIMENT.claims)
    assert 0 < results.mean("density") <= 1
    assert results.mean("dense") > 0.5
    assert results.mean("one shot") > 0.5
    assert results.mean("gradual") > 0.5
    assert 0 < results.mean("undecided") <= 1
    dense = experiment.RunFolder(tmp_path / "dense-0")
    recipe = experiment.parse_recipe(small)
    few = experiment._one_shot(recipe, *experiment._built(recipe), dense, 10)
    assert few < results.mean("one shot") - 0.2
    gradual = experiment.RunFolder(tmp_path / "gradual-0")
    kept, total = experiment._count_weights(experiment._built(recipe)[1], gradual)
    assert kept / total == pytest.approx(results.mean("density"), abs=1 / total)
    again = experiment.run("full", Workspace(tmp_path))
    assert again == results


def test_the_recipes_of_both_scales_are_recipes() -> None:
    for changes in experiment.CHANGES.values():
        recipe = experiment.parse_recipe(experiment.RECIPE | changes)
        assert recipe.optimizer == experiment.RECIPE["optimizer"]
    steps = experiment.PART["task"]["limit_train"] // experiment.PART["batch_size"]
    assert experiment.PART["evaluate_every"] == experiment.PART["epochs"] * steps


def test_claims_can_fail() -> None:
    broken = {
        "dense": [0.9],
        "recalibrated": [0.1],
        "density": [0.9],
        "one shot": [0.8],
        "gradual": [0.8],
    }
    claims = experiment.EXPERIMENT.claims
    assert not any(claim.holds(Results(broken)) for claim in claims)
