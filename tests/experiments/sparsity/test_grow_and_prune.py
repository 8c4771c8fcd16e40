"""Growing to half: sizes and costs on trainings of seconds, and claims that can fail."""

from __future__ import annotations

import pytest

from latewood.experiments import Results, Workspace
from latewood.experiments.sparsity import grow_and_prune as experiment

EXPERIMENTS = (experiment.IMAGES, experiment.CHARACTERS, experiment.FOREGROUNDS)


@pytest.mark.parametrize("chosen", EXPERIMENTS, ids=lambda each: each.name)
def test_claims_of_the_quick_scale_hold(chosen, tmp_path):
    results = chosen.run("quick", Workspace(tmp_path))
    quick = [claim for claim in chosen.claims if "quick" in claim.scales]
    assert [claim.name for claim in quick] == ["ends-with-half", "trains-with-half"]
    assert [(c.name, c.measured(results)) for c in quick if not c.holds(results)] == []
    assert all(claim.measured(results) for claim in chosen.claims)
    assert results.mean("narrow macs") <= 0.5
    assert results.mean("narrow training") == pytest.approx(results.mean("narrow macs"))


@pytest.mark.parametrize("chosen", EXPERIMENTS, ids=lambda each: each.name)
def test_every_claim_can_fail(chosen):
    better = chosen is not experiment.CHARACTERS
    good, bad = ([0.9], [0.1]) if better else ([0.1], [0.9])
    broken = {"dense": good, "narrow": good, "grown": bad}
    broken |= {"grown macs": [0.6], "grown parameters": [0.6], "grown training": [0.9]}
    assert [claim.name for claim in chosen.claims if claim.holds(Results(broken))] == []
    # A budget that is met by being far below it is not met.
    assert not chosen.claims[0].holds(Results(broken | {"grown macs": [0.4]}))
