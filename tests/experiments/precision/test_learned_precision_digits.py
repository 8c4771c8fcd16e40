"""Learned bits on digits: quick scale, claims that can fail, and relatives that do as they say."""

import pytest
import torch

from latewood.experiments import Results, Workspace
from latewood.experiments.precision import learned_precision_digits as experiment
from latewood.experiments.precision.reference_quantizers import (
    LearnedStep,
    NoisyStep,
    average_bits,
    settle,
)


def test_claims_of_the_quick_scale_hold(tmp_path):
    chosen = experiment.LEARNED_PRECISION_DIGITS
    results = chosen.run("quick", Workspace(tmp_path))
    quick = [claim for claim in chosen.claims if "quick" in claim.scales]
    assert [claim.name for claim in quick] == ["the-average-asked-for"]
    assert [(c.name, c.measured(results)) for c in quick if not c.holds(results)] == []
    assert all(claim.measured(results) for claim in chosen.claims)


def test_every_claim_can_fail():
    better = [
        "float",
        "uniform 1",
        "uniform 2",
        "uniform 2 with inputs",
        "steps 2",
        "noisy steps 2",
    ]
    broken = {name: [0.9] for name in better} | {name: [0.5] for name in experiment.LEARNED}
    broken |= {f"{name} bits": [3.0] for name in experiment.LEARNED}
    broken |= {"channel 2": [0.6]}
    claims = experiment.LEARNED_PRECISION_DIGITS.claims
    assert [claim.name for claim in claims if claim.holds(Results(broken))] == []


def test_a_learned_step_rounds_to_its_grid():
    weight = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    quantizer = LearnedStep(weight, 2)
    rounded = quantizer(weight)
    assert len((rounded / quantizer.scale).detach().round(decimals=3).unique()) == 4
    rounded.square().sum().backward()
    assert quantizer.scale.grad != 0


def test_noisy_steps_settle_at_an_average():
    weights = [torch.linspace(-1, 1, 128).view(8, 16), torch.linspace(-2, 1, 32).view(4, 8)]
    quantizers = [NoisyStep(weight, seed=number) for number, weight in enumerate(weights)]
    assert average_bits(quantizers).item() == pytest.approx(8.0, abs=1e-5)
    with torch.no_grad():
        quantizers[0].logits.copy_(torch.linspace(-3, 3, 16))
    assert 2.5 < settle(quantizers, 3.0) <= 3.0
    for quantizer, weight in zip(quantizers, weights, strict=True):
        levels = [len(column.detach().round(decimals=4).unique()) for column in quantizer(weight).T]
        assert all(n <= 2**b for n, b in zip(levels, quantizer.fixed.flatten(), strict=True))
