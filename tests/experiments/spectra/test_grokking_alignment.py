"""Alignment over ranks: the moments that are read, and claims that can fail."""

from __future__ import annotations

import math

import torch

from latewood.experiments import Results
from latewood.experiments.spectra import grokking_alignment


def test_thirds_at_the_moments_of_a_run() -> None:
    diagonals = {
        0: torch.tensor([0.1, 0.1, 0.1, 0.1, 0.1, 0.1]),
        50: torch.tensor([0.1, 0.1, 0.1, 0.2, 0.1, 0.1]),
        100: torch.tensor([0.1, 0.1, 0.4, 0.6, 0.1, 0.1]),
        150: torch.tensor([0.7, 0.9, 0.2, 0.2, 0.0, 0.2]),
    }
    found = grokking_alignment.moments(diagonals, 0.1, 100.0)
    assert (found["there at"], found["random"]) == (100, 0.1)
    assert math.isclose(found["middle once it is there"], 0.5, rel_tol=1e-6)
    assert found["middle once it has grokked"] == found["middle once it is there"]
    assert math.isclose(found["first at the end"], 0.8, rel_tol=1e-6)
    assert math.isclose(found["last at the start"], 0.1, rel_tol=1e-6)
    claims = grokking_alignment.EXPERIMENT.claims
    results = Results({name: [value] for name, value in found.items()} | {"grokked at": [100.0]})
    assert all(claim.holds(results) for claim in claims)


def test_a_run_in_which_nothing_aligns() -> None:
    flat = {step: torch.full((7,), 0.1) for step in (0, 50)}
    found = grokking_alignment.moments(flat, 0.1)
    assert found["there at"] == math.inf
    assert math.isnan(found["first once it is there"])
    results = Results({name: [value] for name, value in found.items()} | {"grokked at": [math.inf]})
    claims = grokking_alignment.EXPERIMENT.claims
    assert [claim.name for claim in claims if claim.holds(results)] == []
    assert all(claim.measured(results) for claim in claims)
