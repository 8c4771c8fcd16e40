"""Growing against Torch-Pruning: costs at the quick scale, and claims that can fail."""

from __future__ import annotations

import importlib.util

import pytest

from latewood.experiments import Results, Workspace
from latewood.experiments.runner import run_experiment, verdicts
from latewood.experiments.sparsity import grow_and_prune_costs as experiment


def test_claims_of_the_quick_scale_hold(tmp_path, monkeypatch):
    monkeypatch.setitem(experiment.EPOCHS, "quick", 2)
    results = experiment.run("quick", Workspace(tmp_path))
    quick = [claim for claim in experiment.EXPERIMENT.claims if "quick" in claim.scales]
    assert len(quick) == 2
    assert [(c.name, c.measured(results)) for c in quick if not c.holds(results)] == []
    assert all(claim.measured(results) for claim in experiment.EXPERIMENT.claims)
    # Half of the dense training, and half of a fifth's.
    assert results.mean("pruned a fifth training") == pytest.approx(0.6, abs=0.05)


def test_without_torch_pruning_only_comparisons_with_it_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setitem(experiment.EPOCHS, "quick", 2)
    monkeypatch.setitem(experiment.GROWN_EPOCHS, "quick", {"a fifth": 2, "a tenth": 2})
    record = run_experiment(experiment.EXPERIMENT, "quick", tmp_path)
    assert record.results is not None
    assert "pip install" in record.results.settings["Torch-Pruning"]
    found = {each.claim: each.word for each in verdicts(experiment.EXPERIMENT, record)}
    assert found["within-the-budget-fifth"] == "holds"
    rows = {each.name: each for each in experiment.EXPERIMENT.claims}
    with pytest.raises(KeyError, match="pruned"):
        rows["cheaper-than-pruning-fifth"].holds(record.results)


def test_every_claim_can_fail():
    broken = {}
    for name in experiment.KEPT:
        broken |= {f"{way} {name}": [0.99] for way in ("pruned", "narrow")}
        broken |= {f"{way} {name} training": [0.5] for way in ("pruned", "narrow", "grown")}
        broken |= {f"grown {name}": [0.9], f"grown {name} parameters": [0.25]}
        broken |= {f"grown {name} macs": [0.25]}
    claims = experiment.EXPERIMENT.claims
    assert [claim.name for claim in claims if claim.holds(Results(broken))] == []
