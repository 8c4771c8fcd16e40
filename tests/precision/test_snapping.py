"""Snapping against thresholds worked out by hand, and the closed form against its derivation."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latewood.errors import RequestError
from latewood.precision.snapping import (
    checked_palette,
    drop_cheapest,
    nearest_levels,
    require_reachable,
    snap_to_average,
    two_levels,
)
from latewood.precision.water_filling import expected_loss, optimal_bits, price_of_average

CURVATURE = torch.tensor([0.01, 0.1, 1, 10, 100], dtype=torch.float64)


def test_bits_of_a_quadratic():
    expected = torch.tensor([1, 1, 2.104100, 3.765065, 5.426028], dtype=torch.float64)
    torch.testing.assert_close(optimal_bits(CURVATURE, 0.05), expected, atol=2e-6, rtol=0)


def test_four_times_the_curvature_buys_a_bit():
    bits = optimal_bits(torch.tensor([4.0, 16.0, 64.0], dtype=torch.float64), 0.05)
    assert bits.diff().tolist() == pytest.approx([1, 1])


@pytest.mark.parametrize("average", [1.2, 2.0, 3.7, 7.5])
def test_the_price_gives_the_average(average):
    counts = torch.tensor([5, 1, 3, 2, 7])
    price = price_of_average(CURVATURE, counts, average)
    bits = optimal_bits(CURVATURE, price)
    assert (bits * counts).sum() / counts.sum() == pytest.approx(average, abs=1e-6)


@pytest.mark.parametrize(
    ("curvature", "average", "named"),
    [
        (CURVATURE, 1.0, "average"),
        (CURVATURE, 8.0, "average"),
        (torch.zeros(5), 2.0, "curvature"),
        (torch.tensor([0.0, 0, 0, 0, 1]), 3.0, r"average.*below 2\.4"),
    ],
)
def test_an_average_that_no_price_gives(curvature, average, named):
    with pytest.raises(RequestError, match=named):
        price_of_average(curvature, torch.ones(5), average)


def test_optimal_bits_minimise_the_expected_objective():
    bits = optimal_bits(CURVATURE[2:], 0.05)
    ones = torch.ones(3)

    def objective(at):
        return expected_loss(CURVATURE[2:], ones, at) + 0.05 * float(at.sum())

    assert all(objective(bits) < objective(bits + by) for by in (-0.01, 0.01))


def test_thresholds_lie_half_way():
    bits = torch.tensor([0.9, 1.49, 1.5, 2.99, 3.0, 9.0])
    assert nearest_levels(bits, (1, 2, 4)).tolist() == [1, 1, 2, 2, 4, 4]
    assert nearest_levels(bits, (3,)).tolist() == [3] * 6


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.floats(1, 8), st.integers(1, 9)), min_size=1, max_size=30),
    st.floats(1, 4),
)
def test_the_average_is_met_from_below(groups, average):
    bits, counts = torch.tensor([b for b, _ in groups]), torch.tensor([n for _, n in groups])
    levels = snap_to_average(bits, counts, (1, 2, 4), average).double()
    spent = float((levels * counts).sum())
    budget = average * int(counts.sum())
    assert spent <= budget + 1e-6
    # What is left is less than one group more would take, unless all have the most.
    rest = (levels < 4).nonzero()
    assert not len(rest) or budget - spent < 2 * int(counts.max()) * max(1, len(set(groups)))
    order = torch.argsort(bits)
    assert (levels[order].diff() >= -1e-9).all() or len(set(bits.tolist())) < len(bits)


def test_equal_bits_are_taken_in_their_order():
    assert snap_to_average(torch.full((4,), 8.0), torch.ones(4), (1, 2, 4), 1.5).tolist() == [
        2, 2, 1, 1,
    ]  # fmt: skip


def test_two_levels_fit_the_network():
    counts = torch.ones(4)
    easy, hard = torch.full((3,), 1e-4), torch.tensor([1e4])
    curvature = torch.cat([easy, hard])
    bits = optimal_bits(curvature.double(), 0.01)
    assert two_levels(bits, counts, curvature, price=0.01, average=None) == (1, 8)
    low, high = two_levels(bits, counts, curvature, price=0.01, average=2.5)
    assert low <= 2.5 <= high
    assert low == 1


def test_what_costs_more_than_it_brings_is_dropped():
    levels = torch.tensor([1, 1, 2])
    dropped = drop_cheapest(
        levels, torch.ones(3), torch.tensor([0.001, 10, 0.0]), torch.ones(3), price=0.01
    )
    assert dropped.tolist() == [True, False, False]


def test_palettes():
    assert checked_palette((4, 1, 2)) == checked_palette("three_levels") == (1, 2, 4)
    for wrong in ((), (0,), (1, 1), (9,), (True, 2), (1.0, 2), "four_levels", 4):
        with pytest.raises(RequestError, match="palette"):
            checked_palette(wrong)


@pytest.mark.parametrize("target", [0.5, 4.1])
def test_a_target_out_of_reach_says_what_is_reachable(target):
    with pytest.raises(RequestError, match=r"target_bits.*from 1 to 4"):
        require_reachable(target, (1, 2, 4))
