"""Power laws in spectra: a brute-force fit, samples of a known exponent, and what has no tail."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from latewood.spectra.power_law import power_law


def brute_force(eigenvalues):
    """Clauset et al., one tail after the other, without a vector."""
    values = sorted(eigenvalues)
    best = None
    for start in range(len(values) - 1):
        tail = values[start:]
        if tail[-1] == tail[0] or (start and values[start - 1] == tail[0]):
            continue
        alpha = 1 + len(tail) / sum(math.log(x / tail[0]) for x in tail)
        law = [1 - (x / tail[0]) ** (1 - alpha) for x in tail]
        distance = max(
            max(abs(p - i / len(tail)), abs(p - (i + 1) / len(tail))) for i, p in enumerate(law)
        )
        if best is None or distance < best[2]:
            best = (alpha, tail[0], distance)
    return best


@pytest.mark.parametrize("seed", range(5))
def test_the_fit_is_that_of_brute_force(seed):
    values = torch.randn(40, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    values = values.abs()
    values[:3] = values[5]
    law = power_law(values)
    assert law is not None
    expected = brute_force(values.square().tolist())
    assert (law.alpha, law.xmin, law.distance) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("alpha", [1.8, 2.5, 4.0])
def test_the_exponent_of_samples_from_a_law(alpha):
    uniform = torch.rand(4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    eigenvalues = 0.3 * (1 - uniform) ** (-1 / (alpha - 1))
    law = power_law(eigenvalues.sqrt())
    assert law is not None
    assert law.alpha == pytest.approx(alpha, rel=0.1)
    assert law.distance < 0.03


def test_a_law_has_no_scale():
    values = torch.rand(200, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    one, other = power_law(values), power_law(1e3 * values.flip(0))
    assert one is not None
    assert other is not None
    assert other.alpha == pytest.approx(one.alpha)
    assert other.xmin == pytest.approx(1e6 * one.xmin)


def test_zeros_are_no_part_of_the_spectrum():
    values = torch.rand(30, generator=torch.Generator().manual_seed(2)) + 0.1
    assert power_law(torch.cat([values, torch.zeros(50), 1e-9 * values])) == power_law(values)


@pytest.mark.parametrize(
    "values", [[], [0.0] * 20, [1.0] * 9, [3.0] * 20, [1.0] * 20 + [np.nan], [np.inf] + [1.0] * 20]
)
def test_where_there_is_no_law(values):
    assert power_law(torch.tensor(values)) is None
