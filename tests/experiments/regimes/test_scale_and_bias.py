"""The claims about regimes hold at the quick scale, and every one can fail."""

from __future__ import annotations

import pytest

from latewood.experiments import Results, Workspace
from latewood.experiments.regimes import output_scale_digits, scale_and_bias

EXPERIMENTS = [scale_and_bias.SCALE_AND_BIAS, output_scale_digits.OUTPUT_SCALE_DIGITS]


@pytest.mark.parametrize("chosen", EXPERIMENTS, ids=lambda e: e.name)
def test_claims_hold_at_the_quick_scale_and_can_fail(chosen, tmp_path):
    results = chosen.run("quick", Workspace(tmp_path))
    quick = [claim for claim in chosen.claims if "quick" in claim.scales]
    assert [claim.name for claim in quick if not claim.holds(results)] == []
    assert all(claim.measured(results) for claim in chosen.claims)
    # Figures that all are alike, and ones of which each is ten times the one before.
    alike = Results({name: [9.0 + place] for place, name in enumerate(results.measurements)})
    apart = Results({name: [10.0**place] for place, name in enumerate(results.measurements)})
    assert [c.name for c in chosen.claims if c.holds(alike) and c.holds(apart)] == []
