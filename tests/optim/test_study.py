"""The learning-rate x eps study on matrices whose answers are known."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latewood.errors import RequestError
from latewood.optim import best_rates, coupling_slope, rate_study, spread

EPS = [1e-2, 1e-1, 1.0, 10.0, 100.0]
RATES = [1e-2, 1e-1, 1.0, 10.0, 100.0, 1000.0]


def valley(best):
    """Losses that grow with the distance of log rate from log best, row by row."""
    return [[abs(math.log10(rate / b)) for rate in RATES] for b in best]


def test_a_band_along_the_diagonal_has_slope_one():
    study = rate_study(EPS, RATES, valley([0.1, 0.1, 1.0, 10.0, 100.0]), higher_is_better=False)
    assert study.best == (0.1, 0.1, 1.0, 10.0, 100.0)
    assert study.slope == pytest.approx(1.0)
    assert study.spread == pytest.approx(1000.0)
    assert not study.separable


def test_an_upright_band_has_slope_zero():
    study = rate_study(EPS, RATES, valley([1.0] * 5), higher_is_better=False)
    assert (study.slope, study.spread, study.separable) == (pytest.approx(0.0), 1.0, True)
    assert "eps 100: best learning rate 1" in study.lines()


@given(st.floats(-2, 2), st.floats(-3, 3))
def test_the_slope_is_that_of_a_power_law(slope, offset):
    best = [10**offset * e**slope for e in EPS]
    assert coupling_slope(EPS, best, floor=1e-2) == pytest.approx(slope, abs=1e-9)


def test_rows_below_the_floor_do_not_count():
    assert coupling_slope(EPS, [1e3, 0.1, 1.0, 10.0, 100.0]) == pytest.approx(1.0)
    assert math.isnan(coupling_slope(EPS, [1.0] * 5, floor=100.0))


def test_diverged_runs_never_win():
    values = [[math.nan, 0.5, math.inf], [math.nan] * 3]
    best = best_rates([0.1, 1.0, 10.0], values, higher_is_better=False)
    assert best[0] == 1.0 and math.isnan(best[1])
    assert spread(best) == 1.0


def test_ties_go_to_the_smallest_rate_within_the_tolerance():
    row = [[0.30, 0.104, 0.100]]
    assert best_rates([1, 2, 3], row, higher_is_better=False, tolerance=0.005) == [2]
    assert best_rates([1, 2, 3], row, higher_is_better=False) == [3]
    assert best_rates([1, 2, 3], [[0.9, 0.9, 0.1]], higher_is_better=True) == [1]


def test_axes_may_come_in_any_order():
    values = valley([0.1, 0.1, 1.0, 10.0, 100.0])
    study = rate_study(EPS[::-1], RATES, values[::-1], higher_is_better=False)
    assert study.best == (0.1, 0.1, 1.0, 10.0, 100.0)


@pytest.mark.parametrize(
    ("eps", "rates", "values"),
    [
        ([0.0], [1.0], [[1.0]]),
        (["1"], [1.0], [[1.0]]),
        ([1.0], [], [[]]),
        ([1.0, 2.0], [1.0], [[1.0]]),
    ],
)
def test_matrices_that_make_no_sense_are_refused(eps, rates, values):
    with pytest.raises(RequestError):
        rate_study(eps, rates, values, higher_is_better=True)
