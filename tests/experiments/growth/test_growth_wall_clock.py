"""Growth against the clock: budgets of equal cost, where two curves cross, claims that can fail."""

from __future__ import annotations

import math

import pytest

from latewood.experiments import Results, Workspace
from latewood.experiments.growth import growth_wall_clock as experiment
from latewood.experiments.growth.equal_time_comparison import crossing


@pytest.mark.parametrize(
    "chosen",
    [
        experiment.CHARACTERS,
        experiment.NARROW_CHARACTERS,
        experiment.WIDE_CHARACTERS,
        experiment.IMAGES,
        experiment.RESIDUAL,
    ],
    ids=lambda each: each.name,
)
def test_a_quick_comparison_spends_what_it_says(chosen, tmp_path):
    results = chosen.run("quick", Workspace(tmp_path))
    quick = [claim for claim in chosen.claims if "quick" in claim.scales]
    # The loss moves under variance transfer, which halves the logits.
    keeps = [] if chosen is experiment.NARROW_CHARACTERS else ["the-function-is-kept"]
    assert [claim.name for claim in quick if claim.holds(results)] == keeps
    assert (results.mean("jump") < 1e-3) is bool(keeps)
    assert all(claim.measured(results) for claim in chosen.claims)
    assert results.mean("full macs") == 1.0
    assert results.mean("full, equal macs macs") == pytest.approx(
        results.mean("grown macs"), abs=0.05
    )
    assert results.mean("full, a third longer macs") == pytest.approx(4 / 3, abs=0.02)
    assert results.mean("half macs") < results.mean("full macs")


def test_every_claim_can_fail():
    names = ("half", "full", "full, equal macs", "full, a third longer")
    broken = {key: [1.0] for key in names} | {"grown": [2.0], "jump": [0.5], "half": [0.9]}
    assert [claim.name for claim in experiment.CLAIMS if claim.holds(Results(broken))] == []


def test_two_curves_cross_where_lines_in_the_logarithm_do():
    # The gap is log2(budget) - 3: nothing between 4 and 16 but 8.
    assert crossing({4.0: (1.0, 2.0), 16.0: (2.0, 1.0)}) == pytest.approx(8.0)
    # Extrapolated from the last two: -2 at 2, -1 at 4.
    assert crossing({1.0: (0.0, 9.0), 2.0: (0.0, 2.0), 4.0: (0.0, 1.0)}) == (pytest.approx(8.0))
    assert crossing({1.0: (2.0, 1.0), 2.0: (2.0, 1.0)}) == 0.0
    assert crossing({1.0: (1.0, 2.0), 2.0: (1.0, 3.0)}) == math.inf


def test_a_crossing_that_never_comes_is_said_so():
    claim = experiment.CLAIMS[0]
    losses = {"half": [1.0], "full": [2.0], "half, 1 s": [2.0], "full, 1 s": [2.5]}
    assert "full ahead at no budget" in claim.measured(Results(losses))
    assert "full ahead from 30 s on" in claim.measured(Results(losses | {"crossing": [30.2]}))
