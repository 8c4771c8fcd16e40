"""The bound functions, and the condition on them, against the papers' numbers."""

import itertools
import math

import pytest

from latewood.errors import RequestError
from latewood.optim import (
    CorrectedBounds,
    HyperbolicBounds,
    SwitchedBounds,
    regret_bound,
    regret_constant,
    regret_difference,
)


@pytest.mark.parametrize(
    ("step", "lower", "upper"),
    [
        (1, 9.99000999e-5, 100.1),
        (10, 9.90099e-4, 10.1),
        (100, 9.0909e-3, 1.1),
        (1000, 0.05, 0.2),
        (1173, 0.0539807, 0.1852515),
        (10_000, 0.0909091, 0.11),
    ],
)
def test_original_bounds_at_their_defaults(step, lower, upper):
    bounds = HyperbolicBounds()
    assert 0.1 * bounds.lower(float(step)) == pytest.approx(lower, rel=2e-5)
    assert 0.1 * bounds.upper(float(step)) == pytest.approx(upper, rel=2e-5)


@pytest.mark.parametrize("gamma", [1e-3, 0.1, 1.0, 100.0])
def test_the_regret_constant_of_the_original_bounds_in_closed_form(gamma):
    bounds = HyperbolicBounds(gamma)
    values = [regret_difference(bounds, t) for t in range(1, 2000)]
    closed = [1 + 1 / gamma + (t - 1) / (gamma * (t - 1) + 1) for t in range(1, 2000)]
    assert values == pytest.approx(closed, rel=1e-9)
    assert all(a < b for a, b in itertools.pairwise(values))
    assert values[-1] < 1 + 2 / gamma <= 3 + 2 / gamma


def test_gamma_zero_never_clips():
    bounds = HyperbolicBounds(0.0)
    assert (bounds.lower(7.0), bounds.upper(7.0)) == (0.0, math.inf)


@pytest.mark.parametrize("constant", [1.0, 3.0, 50.0])
@pytest.mark.parametrize("gamma", [1e-6, 1e-3, 10.0])
def test_corrected_bounds_meet_the_condition_exactly_and_never_cross(gamma, constant):
    bounds = CorrectedBounds(HyperbolicBounds(gamma), constant)
    for step in (1, 2, 3, 10, 1000, 10**6):
        assert regret_difference(bounds, step) == pytest.approx(constant, rel=1e-6)
        assert 0 < bounds.lower(float(step)) <= bounds.upper(float(step)) * (1 + 1e-12)


def test_bounds_that_cross_are_refused():
    with pytest.raises(RequestError, match="constant"):
        CorrectedBounds(HyperbolicBounds(1.0), 0.5)
    with pytest.raises(RequestError, match="lower_rate"):
        SwitchedBounds(2.0, 1.0, 10)
    with pytest.raises(RequestError, match="gamma"):
        HyperbolicBounds(-1.0)


def test_bounds_of_something_else_than_numbers_are_refused():
    with pytest.raises(RequestError, match="gamma"):
        HyperbolicBounds("1")
    with pytest.raises(RequestError, match="lower_rate"):
        SwitchedBounds(None, 1.0, 10)
    with pytest.raises(RequestError, match="last_loose_step"):
        SwitchedBounds(0.5, 1.0, "10")
    with pytest.raises(RequestError, match="constant"):
        CorrectedBounds(constant="3")


def test_switched_bounds_make_the_constant_as_large_as_one_likes():
    alpha, scale, beta2 = 0.5, 200.0, 0.9
    constants = []
    for last in (10, 1000):
        bounds = SwitchedBounds(alpha / scale, alpha / math.sqrt(1 - beta2), last)
        assert bounds.upper(float(last)) == pytest.approx(alpha / math.sqrt(1 - beta2))
        assert bounds.upper(last + 1.0) == bounds.lower(1.0) == alpha / scale
        constants.append(regret_constant(bounds, 2000))
    assert constants[1] > 90 * constants[0]


def test_the_regret_bound_grows_like_the_root_of_time_and_shrinks_with_gamma():
    def bound(gamma, steps):
        options = {"dimension": 3, "diameter": 2.0, "gradient": 5.0, "beta1": 0.5}
        return regret_bound(HyperbolicBounds(gamma), steps, **options)

    assert bound(1.0, 4000) / bound(1.0, 1000) == pytest.approx(2.0, rel=0.05)
    assert bound(0.1, 500) > bound(1.0, 500) > bound(100.0, 500)
    # Corollary 2, with the constants of d, D and G above.
    closed = 5 * math.sqrt(500) / 0.5 * (1 + 1 / 1.0) * (3 * 4.0 + 25.0)
    assert bound(1.0, 500) <= closed


def test_the_regret_bound_scales_with_the_final_rate():
    # Twice the rate: half of the first part, twice the second.
    parts = [
        regret_bound(HyperbolicBounds(1.0), 100, dimension=1, diameter=d, gradient=g, final_rate=r)
        for d, g, r in ((2.0, 0.0, 1.0), (2.0, 0.0, 2.0), (0.0, 3.0, 1.0), (0.0, 3.0, 2.0))
    ]
    assert parts[1] == pytest.approx(parts[0] / 2)
    assert parts[3] == pytest.approx(2 * parts[2])
