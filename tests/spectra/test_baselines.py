"""The effective rank of random matrices: closed forms, quadrature, and fresh torch layers."""

import math

import pytest
import torch
from torch import nn

from latewood.errors import RequestError
from latewood.spectra import effective_rank, random_effective_rank, singular_values


@pytest.mark.parametrize(
    ("ratio", "expected"), [(2, 0.92605), (3, 0.95366), (4, 0.96622), (9, 0.98564)]
)
def test_marchenko_pastur(ratio, expected):
    assert random_effective_rank(100, 100 * ratio) == pytest.approx(expected, abs=1e-5)
    assert random_effective_rank(100 * ratio, 100) == random_effective_rank(100, 100 * ratio)


def test_quarter_circle():
    closed = 2 * math.exp(4 / 3) / (3 * math.pi)
    assert closed == pytest.approx(0.8050413305, abs=1e-10)
    assert random_effective_rank(7, 7) == closed
    # The quadrature must run into the closed form.
    assert random_effective_rank(10**7, 10**7 + 1) == pytest.approx(closed, abs=1e-5)


@pytest.mark.parametrize(
    ("shape", "expected"), [((256, 256), 0.805), ((128, 384), 0.953), ((512, 128), 0.966)]
)
def test_fresh_layers_read_as_random(shape, expected):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weight = nn.Linear(*shape).weight
    measured = effective_rank(singular_values(weight)).item()
    assert measured == pytest.approx(expected, abs=3e-3)
    assert measured == pytest.approx(random_effective_rank(*shape), abs=3e-3)


def test_a_single_row_is_full_rank():
    assert random_effective_rank(1, 30) == 1


@pytest.mark.parametrize("side", [(0, 3), (3, -1)])
def test_impossible_sides_are_refused(side):
    with pytest.raises(RequestError, match="at least 1"):
        random_effective_rank(*side)
