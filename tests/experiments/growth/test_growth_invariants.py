"""What growth keeps: the quick scale holds what must hold, and every claim can fail."""

from __future__ import annotations

import pytest

from latewood.experiments import Results, Workspace
from latewood.experiments.growth import growth_invariants as experiment

NOT_KEPT = "pairs-cost-nothing-more"
"""ResNet-20 begins with 4 channels, and 2 are the least that can be added."""


def test_claims_of_the_quick_scale_hold(tmp_path):
    chosen = experiment.INVARIANTS
    results = chosen.run("quick", Workspace(tmp_path))
    failed = [claim.name for claim in chosen.claims if not claim.holds(results)]
    assert failed == [NOT_KEPT]
    assert all(claim.measured(results) for claim in chosen.claims)


def test_every_claim_can_fail():
    names = [f"{name} change" for name in experiment.FAMILIES]
    names += ["variance at the event", "variance parted", "moment off"]
    names += ["sum of gradients", "difference of gradients", "momentum off", "newborn momentum"]
    names += ["zero state", "filled state", "own counts"]
    names += [f"{name} cost" for name in experiment.NETWORKS]
    broken = {name: [9.0] for name in names}
    broken |= {f"{name} cost, real widths": [8.0] for name in experiment.NETWORKS}
    results = Results(broken)
    assert [claim.name for claim in experiment.INVARIANTS.claims if claim.holds(results)] == []


def test_first_steps_of_newborn_entries_are_those_of_an_independent_computation():
    naive = experiment.newborn_steps("zero", counters=False, count=1000)
    assert naive[:5] == pytest.approx([2.515, 3.381, 3.940, 4.332, 4.616], abs=2e-3)
    filled = experiment.newborn_steps("carry", counters=False)
    assert filled[:3] == pytest.approx([0.100, 0.190, 0.271], abs=1e-3)


def test_a_schedule_of_real_widths_costs_what_its_formula_says():
    # The convolutions but the first are quadratic in the width, and whole widths come close.
    real = experiment.schedule_cost_of_real_widths("VGG-11")
    assert real == pytest.approx(experiment.schedule_cost("VGG-11"), abs=5e-3)
