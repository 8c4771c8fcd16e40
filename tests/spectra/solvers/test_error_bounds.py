"""Every error bound against a reference that is known better than the bound."""

import math

import numpy as np
import pytest
import torch

from latewood.spectra import effective_rank, factors
from latewood.spectra.solvers.error_bounds import rank_error


def with_values(rows, columns, values, seed=0):
    """A float32 matrix whose singular values are near those given."""
    noise = torch.Generator().manual_seed(seed)

    def basis(size):
        return torch.linalg.qr(torch.randn(size, len(values), generator=noise).double())[0]

    return (basis(rows) * values @ basis(columns).mT).float()


SPECTRA = {
    "flat": torch.ones(40).double(),
    "fresh": None,
    "steep": 0.7 ** torch.arange(40).double(),
    "rank 5": torch.cat([torch.ones(5), torch.zeros(35)]).double(),
    "gap": torch.cat([torch.ones(4), 1e-2 * torch.ones(36)]).double(),
    "zero": torch.zeros(40).double(),
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("shape", [(40, 40), (40, 200), (200, 40)])
@pytest.mark.parametrize("k", [0, 6])
def test_values_lie_within_their_bounds(name, shape, k):
    values = SPECTRA[name]
    noise = torch.Generator().manual_seed(1)
    matrix = torch.randn(shape, generator=noise) if values is None else with_values(*shape, values)
    found = factors(matrix, k)
    exact = torch.linalg.svdvals(matrix.double())
    # The reference has the error of its own backward-stable algorithm.
    slack = 1e-14 * exact[0]
    assert ((found.values.double() - exact).abs() <= found.errors + slack).all()
    rank, true = (effective_rank(each, normalize=False) for each in (found.values, exact))
    bound = rank_error(found.values, found.errors).item()
    assert abs(rank / true - 1) <= bound + 1e-12 if name != "zero" else rank == bound == 0
    assert found.method == ("svd" if name in ("rank 5", "steep") else "gram")
    if name in ("flat", "fresh"):
        assert bound < 1e-7


def test_bounds_are_not_idle():
    """A bound that is always huge would pass any comparison."""
    matrix = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
    found = factors(matrix, 0)
    assert (found.errors <= 1e-7 * found.values[0]).all()
    assert found.errors[0] >= 2.0**-25 * found.values[0]


@pytest.mark.parametrize("seed", range(20))
def test_rank_error_bounds_what_errors_can_do(seed):
    noise = np.random.default_rng(seed)
    values = torch.tensor(np.sort(noise.gamma(0.3, size=30))[::-1].copy())
    values[20:] *= 10.0 ** -noise.uniform(0, 12)
    errors = torch.tensor(10.0 ** noise.uniform(-9, -3, size=30))
    bound = rank_error(values, errors).item()
    entropy = effective_rank(values, normalize=False).log()
    for _ in range(50):
        moved = (values + errors * torch.tensor(noise.choice([-1.0, 1.0], size=30))).clamp_min(0)
        assert abs(effective_rank(moved, normalize=False).log() - entropy) <= bound


def test_rank_error_of_zeros_and_of_nan():
    assert rank_error(torch.zeros(5), torch.zeros(5)) == 0
    assert math.isnan(rank_error(torch.tensor([1.0, math.nan]), torch.zeros(2)))


def test_pruned_channels_cost_no_rank():
    matrix = torch.randn(64, 300, generator=torch.Generator().manual_seed(0))
    matrix[10:25] = 0
    found = factors(matrix, 8)
    assert found.method == "gram"
    assert (found.values[49:] == 0).all()
    exact = torch.linalg.svd(matrix.double())
    assert torch.allclose(found.values[:49].double(), exact.S[:49], rtol=1e-6)
    cosines = (found.left.double() * exact.U[:, :8]).sum(0).abs()
    assert torch.allclose(cosines, torch.ones(8).double(), atol=1e-6)


def test_rounding_of_the_weights_is_seen_not_hidden():
    """The noise floor of bf16 is a property of the stored weights, so it stays in the spectrum."""
    noise = torch.Generator().manual_seed(0)
    left, right = (torch.randn(512, generator=noise).double() for _ in range(2))
    exact = torch.outer(left, right)
    stored = exact.bfloat16()
    ranks = [
        effective_rank(factors(each, 0).values, normalize=False).item() for each in (exact, stored)
    ]
    assert ranks[0] == pytest.approx(1, abs=1e-6)
    assert 1.1 < ranks[1] < 1.4
