"""The experiment on early hardening: its quick claims hold, and each claim can fail."""

from __future__ import annotations

import pytest

from latewood.experiments import Results, Workspace
from latewood.experiments.sparsity import early_hardening as experiment

pytestmark = pytest.mark.filterwarnings("ignore:soft and hard disagree", "ignore:.*undecided")


def test_every_claim_of_the_quick_scale_holds(tmp_path_factory: pytest.TempPathFactory) -> None:
    results = experiment.run("quick", Workspace(tmp_path_factory.mktemp("workspace")))
    claims = [claim for claim in experiment.EXPERIMENT.claims if "quick" in claim.scales]
    assert [(c.name, c.measured(results)) for c in claims if not c.holds(results)] == []
    assert all(claim.measured(results) for claim in experiment.EXPERIMENT.claims)
    assert results.mean("undecided") > 0.0
    assert results.mean("early hard") > 0.8


def test_every_claim_can_fail() -> None:
    names = ("dense", "soft", "undecided", "density", "ticket", "gradual")
    bad = {f"{prefix}{name}": [0.9] for prefix in ("", "early ") for name in names}
    broken = Results(bad | {"hard": [0.5], "early hard": [0.1]})
    assert [c.name for c in experiment.EXPERIMENT.claims if c.holds(broken)] == []
