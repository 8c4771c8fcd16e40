"""The ablation: costs and jumps at the quick scale, and claims that can fail."""

from __future__ import annotations

from latewood.experiments import Results, Workspace
from latewood.experiments.growth import growth_ablation as experiment


def test_claims_of_the_quick_scale_hold(tmp_path):
    chosen = experiment.ABLATION
    results = chosen.run("quick", Workspace(tmp_path))
    quick = [claim for claim in chosen.claims if "quick" in claim.scales]
    assert [claim.name for claim in quick] == ["a-fraction-of-the-cost", "pairs-keep-the-loss"]
    assert [(c.name, c.measured(results)) for c in quick if not c.holds(results)] == []
    assert all(claim.measured(results) for claim in chosen.claims)
    # Stopped where its multiply-accumulates are those of the networks that grow.
    spent, grown = results.mean(f"{experiment.STOPPED} macs"), results.mean("pairs macs")
    assert abs(spent - grown) < 0.01
    assert results.mean("pairs + VT jump") > 1e-3
    assert results.mean("small macs") < 0.25


def test_every_claim_can_fail():
    ways = [*experiment.RECTIFIED, *experiment.TANH, experiment.STOPPED]
    good = [name for name in ways if name not in (experiment.GROWN, "tanh, pairs + VT + LRA")]
    broken = {key: [0.1] for key in ways} | {key: [0.9] for key in good}
    broken |= {"pairs": [0.7], "pairs + VT": [0.6]}
    broken |= {f"{name} macs": [0.9] for name in ways} | {f"{name} jump": [0.5] for name in ways}
    broken |= {"pairs loss": [1.0], "pairs + VT loss": [2.0]}
    claims = experiment.ABLATION.claims
    assert [claim.name for claim in claims if claim.holds(Results(broken))] == []
