"""The refinement experiment, made tiny: what it measures, and that its claims can fail."""

from __future__ import annotations

import pytest

from latewood.experiments import Results, Workspace
from latewood.experiments.segmentation import refinement as experiment


def test_it_chooses_the_step_with_the_largest_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    small = {"IMAGES": 12, "HELD_OUT": 4, "SIDE": 24, "STEPS": 6, "EVERY": 2, "BATCH_SIZE": 4}
    for name, value in small.items():
        monkeypatch.setattr(experiment, name, value)
    found = experiment.run("cpu", Workspace(tmp_path_factory.mktemp("workspace")))
    errors = {step: found.mean(f"J after {step}") for step in (2, 4, 6)}
    chosen = int(found.mean("chosen step"))
    assert errors[chosen] == max(errors.values())
    assert found.mean("refined") == found.mean(f"IoU after {chosen}")
    assert found.mean("last") == found.mean("IoU after 6")
    for claim in experiment.EXPERIMENT.claims:
        assert claim.measured(found)


def test_every_claim_can_fail_and_hold() -> None:
    bad = Results({"labels": [0.8], "refined": [0.7], "best": [0.75]})
    good = Results({"labels": [0.8], "refined": [0.9], "best": [0.91]})
    assert not any(claim.holds(bad) for claim in experiment.EXPERIMENT.claims)
    assert all(claim.holds(good) for claim in experiment.EXPERIMENT.claims)
