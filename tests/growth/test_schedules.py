from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latewood.errors import RequestError
from latewood.growth import batch_schedule, epoch_schedule, width_schedule
from latewood.growth.schedules import round_to_even


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (16, 64, [16, 20, 24, 28, 34, 40, 48, 58, 64]),
        (64, 256, [64, 76, 92, 110, 132, 158, 190, 228, 256]),
        (128, 512, [128, 154, 184, 220, 264, 316, 380, 456, 512]),
    ],
)
def test_widths_of_the_papers_protocol(start, end, expected):
    assert width_schedule(start, end, 9, 0.2) == expected


def test_epochs_and_batches_of_the_papers_protocol():
    assert epoch_schedule(160, 8, 9, 0.2) == [8, 10, 12, 14, 17, 20, 24, 29, 26]
    assert batch_schedule(128, 9, 0.2) == [552, 460, 383, 319, 266, 222, 185, 154, 128]


@pytest.mark.parametrize(("value", "even"), [(1, 2), (2.9, 2), (3, 4), (0.9, 0), (-1, 0), (5, 6)])
def test_odd_numbers_round_up_to_even(value, even):
    assert round_to_even(value) == even


def test_an_increment_that_rounds_to_nothing_is_one_pair():
    assert width_schedule(2, 10, 5, 0.1) == [2, 4, 6, 8, 10]


def test_a_width_that_is_reached_early_stays():
    assert width_schedule(4, 8, 6, 1.0) == [4, 8, 8, 8, 8, 8]
    assert width_schedule(8, 8, 3, 0.2) == [8, 8, 8]
    assert width_schedule(8, 8, 1, 0.2) == [8]


def test_one_event_grows_to_the_end():
    assert width_schedule(128, 256, 2, 0.2) == [128, 256]
    assert epoch_schedule(10, 6, 2, 0.2) == [6, 4]
    assert epoch_schedule(10, 10, 1) == [10]


def test_aligned_widths_are_multiples():
    assert width_schedule(64, 256, 5, 0.4, align=16) == [64, 96, 128, 176, 256]
    assert width_schedule(20, 100, 4, 0.2, align=8) == [20, 24, 32, 100]


def test_halves_round_up_in_every_phase():
    assert epoch_schedule(100, 5, 4, 0.1) == [5, 6, 7, 82]
    assert batch_schedule(5, 2, 0.1) == [6, 5]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: width_schedule(16, 65), "end: got 65; expected 64 or 66"),
        (lambda: width_schedule(16, 8), "end: got 8; expected an integer of at least 16"),
        (lambda: width_schedule(0, 8), "start: got 0"),
        (lambda: width_schedule(8, 16, 1), "phases: got 1; expected at least 2"),
        (lambda: width_schedule(8, 16, 0), "phases: got 0"),
        (lambda: width_schedule(8, 16, rate=0.0), "rate: got 0.0; expected a finite number above"),
        (lambda: width_schedule(8, 16, rate=float("nan")), "rate: got nan"),
        (lambda: width_schedule(8, 16, align=3), "align: got 3; expected an even"),
        (lambda: width_schedule(9, 17, align=8), "align: got 8; expected 2"),
        (lambda: width_schedule(8.0, 16), "start: got 8.0"),
        (lambda: width_schedule(True, 17), "start: got True"),
        (lambda: epoch_schedule(100, 8), "total: got 100; expected at least 135"),
        (lambda: epoch_schedule(160, 0), "first: got 0"),
        (lambda: epoch_schedule(160, 8, rate=-0.1), "rate: got -0.1"),
        (lambda: batch_schedule(0), "base: got 0"),
        (lambda: batch_schedule(8, rate=float("inf")), "rate: got inf"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(RequestError, match=message):
        call()


@given(
    start=st.integers(1, 200),
    pairs=st.integers(0, 300),
    phases=st.integers(2, 12),
    rate=st.floats(0.01, 3.0),
    align=st.sampled_from([2, 4, 8, 16]),
)
def test_every_schedule_ascends_in_pairs_to_its_end(start, pairs, phases, rate, align):
    end = start + 2 * pairs
    widths = width_schedule(start, end, phases, rate, align=align if start % 2 == 0 else 2)
    assert len(widths) == phases and widths[0] == start and widths[-1] == end
    increments = [after - before for before, after in itertools.pairwise(widths)]
    assert all(increment >= 0 and increment % 2 == 0 for increment in increments)
