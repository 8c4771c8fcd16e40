"""Initialisation schemes and position vectors against their formulas."""

import math

import pytest
import torch
from torch import nn

from latewood.models.parts import initialize, sinusoidal_positions


@pytest.mark.parametrize(
    ("scheme", "variance"),
    [
        ("kaiming_normal", 2 / (32 * 9)),
        ("kaiming_uniform", 2 / (32 * 9)),
        ("xavier_normal", 2 / (32 * 9 + 64 * 9)),
    ],
)
def test_variance_of_the_weights(scheme, variance) -> None:
    model = nn.Sequential(nn.Conv2d(32, 64, 3))
    initialize(model, scheme)
    # 18,432 draws: the relative standard error of the variance is at most sqrt(2/n) = 1 %.
    assert model[0].weight.var().item() == pytest.approx(variance, rel=0.05)
    assert model[0].bias.count_nonzero() == 0


def test_uniform_weights_stay_in_their_bounds() -> None:
    model = nn.Sequential(nn.Linear(50, 400))
    initialize(model, "kaiming_uniform")
    bound = math.sqrt(6 / 50)
    assert 0.95 * bound < model[0].weight.abs().max() <= bound


def test_scheme_torch_keeps_what_was_drawn() -> None:
    model = nn.Sequential(nn.Linear(5, 4))
    before = [parameter.clone() for parameter in model.parameters()]
    initialize(model, "torch")
    assert all(map(torch.equal, before, model.parameters()))


@pytest.mark.parametrize("width", [6, 7])
def test_positions_match_the_formula(width) -> None:
    positions = sinusoidal_positions(5, width)
    for t in range(5):
        for index in range(width):
            angle = t / 10000 ** (2 * (index // 2) / width)
            expected = math.cos(angle) if index % 2 else math.sin(angle)
            assert positions[t, index].item() == pytest.approx(expected, abs=1e-6)
