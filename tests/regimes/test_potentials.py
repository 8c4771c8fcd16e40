"""The potentials against arithmetic of fifty digits, their limits and their closed forms."""

import math

import mpmath
import pytest
import torch

from latewood.errors import RequestError
from latewood.regimes import explicit_regularization, potential, potential_gradient
from latewood.regimes.hypentropy import inverse_map, scalar_potential

DEPTHS = (2.0, 2.001, 2.1, 3.0, 4.0, 5.0, 10.0, 100.0)
RATIOS = torch.logspace(-10, 10, 11, dtype=torch.float64)


def f64(value):
    return torch.tensor(value, dtype=torch.float64)


def exact_inverse(z, depth):
    p = mpmath.mpf(depth) / (mpmath.mpf(depth) - 2)
    low, high = mpmath.mpf(0), mpmath.log1p(z) / p
    for _ in range(170):
        x = (low + high) / 2
        s = -mpmath.expm1(-x)
        low, high = (low, x) if mpmath.exp(p * x) - (1 + s) ** -p > z else (x, high)
    return s


def exact_potential(z, depth):
    z = mpmath.mpf(z)
    if depth == 2:
        return 2 - mpmath.sqrt(4 + z * z) + z * mpmath.asinh(z / 2)
    s, depth = exact_inverse(z, depth), mpmath.mpf(depth)
    e = -2 / (depth - 2)
    return z * s - (depth - 2) / 2 * ((1 - s) ** e + (1 + s) ** e - 2)


@pytest.mark.parametrize("depth", DEPTHS)
def test_fourteen_digits_over_twenty_decades(depth):
    ours = scalar_potential(RATIOS, f64(depth))
    with mpmath.workdps(50):
        for z, value in zip(RATIOS.tolist(), ours.tolist(), strict=True):
            exact = exact_potential(z, depth)
            assert abs((mpmath.mpf(value) - exact) / exact) < 1e-14
            if depth > 2:
                s = exact_inverse(mpmath.mpf(z), depth)
                found = inverse_map(f64([z]), f64([depth]))[0]
                assert abs((mpmath.mpf(found.item()) - s) / s) < 1e-14


def test_worked_values():
    def q(z, depth=2.0):
        return float(scalar_potential(f64(z), f64(depth)))

    for z, value in (
        (0.5, 0.06218041796480),
        (1.0, 0.24514384755981),
        (2.0, 0.93432004929290),
        (10.0, 14.926344385542),
        (100.0, 362.50701909874),
        (1e6, 12815512.557963),
    ):
        assert q(z) == pytest.approx(value, rel=1e-12)
    for depth, value in (
        (3.0, 0.079943497824),
        (4.0, 0.118351085723),
        (5.0, 0.140821184894),
        (10.0, 0.184375598649),
    ):
        assert q(1.0, depth) == pytest.approx(value, rel=1e-11)
    for depth, value in ((3.0, 3.826222906884), (5.0, 5.688037133785), (100.0, 7.280131603287)):
        assert q(10.0, depth) == pytest.approx(value, rel=1e-12)


def test_ratios_of_the_figure():
    """Q of one coordinate over Q of all together, which is how far l1 is from l2."""
    one, all_ = torch.zeros(100).double(), torch.full((100,), 0.1).double()
    one[0] = 1
    for log_scale, expected in (
        (-8.0, {2: 0.148820, 3: 0.115128, 5: 0.105964, 10: 0.103128, 100: 0.101868}),
        (0.0, {2: 0.980780, 3: 0.959766, 5: 0.939495, 10: 0.922775, 100: 0.906883}),
    ):
        for depth, ratio in expected.items():
            alpha = math.exp(log_scale / depth)
            both = potential(torch.stack([one, all_]), depth=depth, alpha=alpha)
            assert float(both[0] / both[1]) == pytest.approx(ratio, abs=1e-6)


def test_even_zero_at_zero_and_a_sweep_is_each_alone(gaussian):
    beta = gaussian[0]
    assert float(potential(torch.zeros(3), alpha=0.1)) == 0
    alphas = [0.01, 0.3, 2.0]
    swept = potential(beta[:, None], depth=3.5, alpha=alphas)
    assert swept.shape == (6, 3)
    for index, alpha in enumerate(alphas):
        alone = potential(-beta, depth=3.5, alpha=alpha)
        torch.testing.assert_close(swept[:, index], alone, rtol=1e-14, atol=0)


@pytest.mark.parametrize("depth", [2.0, 2.5, 3.0, 7.0])
def test_the_gradient_is_that_of_differences(depth, gaussian):
    beta, shape = gaussian[0][0], torch.linspace(0.5, 2, 15).double()
    gradient = potential_gradient(beta, depth=depth, alpha=0.4, shape=shape)
    steps = 1e-5 * torch.eye(15).double()
    options = {"depth": depth, "alpha": 0.4, "shape": shape}
    differences = (potential(beta + steps, **options) - potential(beta - steps, **options)) / 2e-5
    torch.testing.assert_close(gradient, differences, rtol=1e-7, atol=1e-8)


def test_depths_above_two_tend_to_it_after_normalisation():
    ratios = f64([0.1, 1.0, 30.0])
    depth = f64(2 + 1e-7)
    near = depth / (depth - 2) * scalar_potential(ratios, depth)
    torch.testing.assert_close(near, scalar_potential(ratios, f64(2.0)), rtol=1e-6, atol=0)


def test_explicit_regularisation_is_the_smallest_root_of_the_quartic():
    for z in (1e-6, 0.1, 1.0, 5.0, 1e4):
        u = float(explicit_regularization(f64([z]), alpha=1.0))
        roots = mpmath.polyroots(
            [1, -6, 12 - 2 * z * z, -8 - 10 * z * z, z * z + z**4], maxsteps=500, extraprec=400
        )
        smallest = min(
            float(mpmath.re(root))
            for root in roots
            if abs(mpmath.im(root)) < 1e-12 * (1 + abs(root))
        )
        assert u == pytest.approx(smallest, rel=1e-9)
    assert float(explicit_regularization(torch.tensor([1.0]), alpha=1.0)) == pytest.approx(
        0.11835, abs=5e-6
    )


@pytest.mark.parametrize("depth", [2.0, 2.7, 4.0])
def test_no_weights_of_that_predictor_are_nearer(depth):
    beta, alpha = f64([0.7]), 0.6
    least = float(explicit_regularization(beta, depth=depth, alpha=alpha))
    minus = torch.linspace(0, alpha, 20001).double()
    plus = (0.7 + minus**depth) ** (1 / depth)
    searched = float(((plus - alpha) ** 2 + (minus - alpha) ** 2).min())
    assert least == pytest.approx(searched, rel=1e-6)
    assert least <= searched * (1 + 1e-12)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"depth": 1.5, "alpha": 1.0}, "depth"),
        ({"depth": math.nan, "alpha": 1.0}, "depth"),
        ({"depth": math.inf, "alpha": 1.0}, "depth"),
        ({"alpha": 0.0}, "alpha"),
        ({"alpha": True}, "alpha"),
        ({"alpha": 1e-9, "depth": 100.0}, "alpha"),
        ({"alpha": 1.0, "shape": -1.0}, "shape"),
        ({"alpha": 1.0, "shape": [1.0, 2.0]}, "shape"),
        ({"alpha": []}, "alpha"),
    ],
)
def test_values_out_of_range_are_named(arguments, name):
    with pytest.raises(RequestError, match=f"^{name}: got"):
        potential(torch.ones(3), **arguments)


def test_predictors_that_are_none_are_named():
    for beta in (torch.tensor(1.0), torch.tensor([math.nan]), torch.ones(0), torch.ones(2) * 1j):
        with pytest.raises(RequestError, match=r"^beta: got"):
            potential(beta, alpha=1.0)
