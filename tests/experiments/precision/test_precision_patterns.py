"""Patterns for learned bits: the quick scale runs, and every claim can hold and fail."""

from __future__ import annotations

import pytest

from latewood.experiments import Results, Workspace
from latewood.experiments.precision import precision_patterns as experiment

CLAIMS = experiment.PRECISION_PATTERNS.claims
GOOD = {f"cost of {size}": [cost] for size, cost in {1: 2, 2: 1.4, 3: 1.2, 4: 1, 8: 1}.items()}
GOOD |= {f"cost {name}": [1.5] for name in experiment.WITHOUT}
GOOD |= {"cost of uniform patterns": [1.3], "vectors of 1": [2.0], "vectors of 4": [1.01]}


@pytest.mark.filterwarnings("ignore")
def test_quick_scale(tmp_path, monkeypatch):
    # The exploration itself has its own tests: fewer candidates do here.
    few = [0, 4, 8, 10, 19, 32, 36, 44]
    whole = experiment.explore

    def explored(layers, *, size, candidates=few):
        return whole(layers, size=size, candidates=candidates)

    monkeypatch.setattr(experiment, "explore", explored)
    results = experiment.PRECISION_PATTERNS.run("quick", Workspace(tmp_path))
    assert 1 <= results.mean("bits a weight") <= 4
    assert results.mean("vectors of 4") <= results.mean("vectors of 1")
    assert all(claim.measured(results) for claim in CLAIMS)


def test_claims_hold_and_fail():
    assert all(claim.holds(Results(GOOD)) for claim in CLAIMS)
    bad = GOOD | {"cost of 4": [2.0], "vectors of 4": [1.03]}
    assert not any(claim.holds(Results(bad)) for claim in CLAIMS)
