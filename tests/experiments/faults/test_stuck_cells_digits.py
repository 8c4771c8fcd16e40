"""Stuck cells on digits: it runs at quick scale, and every claim can fail."""

import math

from latewood.experiments import Results, Workspace
from latewood.experiments.faults import stuck_cells_digits as experiment


def test_the_quick_scale_measures_what_every_claim_needs(tmp_path):
    chosen = experiment.STUCK_CELLS_DIGITS
    results = chosen.run("quick", Workspace(tmp_path))
    assert all(claim.measured(results) for claim in chosen.claims)
    assert all(
        math.isfinite(value) for name in results.measurements for value in results.values(name)
    )
    # Whether or not it was trained, a device without faults computes with the stored weights.
    assert 0.0 < results.mean("plain, no faults") <= 1.0
    assert results.mean("plain, weights") < results.mean("plain, no faults")


def test_every_claim_can_fail():
    worse = {
        "drop .3, weights": 0.5,
        "drop .3, no faults": 0.8,
        "plain, no faults": 0.95,
        "plain, weights": 0.7,
        "drop .1, weights": 0.6,
        "drop .3, deviation over maps": 0.1,
        "plain, deviation over maps": 0.1,
        "one map .3, that map": 0.7,
        "one map .3, weights": 0.7,
        "rescaled .3, weights": 0.7,
        "plain, pairs": 0.6,
        "plain, aligned cells": 0.6,
        "plain, misaligned cells": 0.6,
        "emulated, misaligned cells": 0.6,
        "emulated, aligned cells": 0.6,
        "plain, calibrated": 0.7,
    }
    for width, value in (("narrow", 0.9), ("middle", 0.8), ("wide", 0.7)):
        worse |= {f"{width} {training}, weights": value for training in ("plain", "drop .3")}
    results = Results({name: [value] for name, value in worse.items()})
    claims = experiment.STUCK_CELLS_DIGITS.claims
    assert [claim.name for claim in claims if claim.holds(results)] == []
