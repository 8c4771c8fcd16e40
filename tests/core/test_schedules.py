"""Schedules: exact end points, worked values, shape, and refusal of nonsense."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latewood.core import schedules
from latewood.core.schedules import (
    constant,
    cosine,
    cubic,
    exponential,
    linear,
    progress,
    schedule,
    step_decay,
    with_warmup,
)
from latewood.errors import RequestError

unit = st.floats(0, 1)
value = st.floats(-1e6, 1e6)
positive = st.floats(1e-6, 1e6)


@pytest.mark.parametrize("ramp", [linear, cosine, cubic])
@given(start=value, end=value)
def test_ramps_meet_their_ends_exactly(ramp, start, end):
    assert ramp(start, end)(0.0) == start
    assert ramp(start, end)(1.0) == end


@given(start=positive, end=positive)
def test_exponential_meets_its_ends_exactly(start, end):
    assert exponential(start, end)(0.0) == start
    assert exponential(start, end)(1.0) == end


@pytest.mark.parametrize("ramp", [linear, cosine, cubic, exponential])
@given(start=positive, end=positive, first=unit, second=unit)
def test_ramps_are_monotone_and_stay_between_their_ends(ramp, start, end, first, second):
    at = ramp(start, end)
    early, late = sorted([first, second])
    slack = 1e-12 * max(start, end)
    rising = end >= start
    assert (at(late) - at(early)) * (1 if rising else -1) >= -slack
    assert min(start, end) - slack <= at(first) <= max(start, end) + slack


def test_worked_values():
    assert linear(2.0, 4.0)(0.25) == 2.5
    assert cosine(1.0, 0.2)(0.5) == pytest.approx(0.6, abs=1e-15)
    assert cubic(0.0, 0.9)(0.5) == pytest.approx(0.9 * (1 - 0.125), abs=1e-15)
    assert constant(0.3)(0.7) == 0.3


def test_temperature_of_continuous_sparsification():
    # The official code multiplies by 200 ** (1 / 84) at each of 85 epochs.
    temperature = exponential(1.0, 200.0)
    values = [temperature(progress(epoch, 85)) for epoch in range(85)]
    assert values[0] == 1.0
    assert values[-1] == 200.0
    for before, after in itertools.pairwise(values):
        assert after / before == pytest.approx(1.065106939444817, rel=1e-12)


def test_step_decay_counts_milestones_reached():
    at = step_decay((0.5, 0.75), factor=0.1, start=2.0)
    assert [at(p) for p in (0.0, 0.49)] == [2.0, 2.0]
    assert at(0.5) == pytest.approx(0.2)
    assert at(0.75) == at(1.0) == pytest.approx(0.02)
    assert step_decay((), start=3.0)(1.0) == 3.0


@given(start=positive, fraction=st.floats(0.01, 0.9), at=unit)
def test_warmup_rises_to_the_schedule_and_keeps_its_end(start, fraction, at):
    plain = cosine(start, 0.0)
    warm = with_warmup(plain, fraction)
    assert warm(0.0) == 0.0
    assert warm(1.0) == plain(1.0)
    assert warm(fraction) == plain(0.0)
    assert 0.0 <= warm(at) <= start * (1 + 1e-12)
    if at < fraction:
        assert warm(at) == pytest.approx(start * at / fraction, rel=1e-9, abs=1e-15 * start)


def test_warmup_can_start_above_zero_and_be_absent():
    assert with_warmup(constant(4.0), 0.5, start=0.25)(0.0) == 1.0
    assert with_warmup(linear(1.0, 0.0), 0.0)(0.0) == 1.0


@given(total=st.integers(1, 10_000), step=st.integers(0, 20_000))
def test_progress_is_0_first_and_exactly_1_at_the_end(total, step):
    assert progress(0, total) == (0.0 if total > 1 else 1.0)
    assert progress(total - 1, total) == 1.0
    assert 0.0 <= progress(step, total) <= 1.0
    assert progress(step, total) <= progress(step + 1, total)


def test_a_run_of_one_step_is_at_its_end():
    assert exponential(1.0, 200.0)(progress(0, 1)) == 200.0


def test_schedule_by_name():
    assert schedule("cosine", start=2.0, end=0.5)(1.0) == 0.5
    assert schedule("linear", warmup=0.2)(0.0) == 0.0
    assert schedule("linear", warmup=0.2, warmup_start=0.5)(0.0) == 0.5
    assert set(schedules.SCHEDULES) == {
        "constant",
        "linear",
        "cosine",
        "exponential",
        "cubic",
        "step_decay",
    }


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: schedule("cosin"), "schedule: got 'cosin'; expected one of constant, linear"),
        (lambda: schedule("linear", stop=1.0), "the arguments start, end"),
        (lambda: schedule("exponential", start=1.0), "the arguments start, end"),
        (lambda: exponential(0.0, 1.0), "start: got 0.0; expected a positive"),
        (lambda: exponential(1.0, -1.0), "end: got -1.0"),
        (lambda: linear(math.nan, 1.0), "start: got nan; expected a finite"),
        (lambda: cosine(1.0, math.inf), "end: got inf"),
        (lambda: step_decay((0.75, 0.5)), "milestones"),
        (lambda: step_decay((0.5, 0.5)), "milestones"),
        (lambda: step_decay((0.0,)), "milestones"),
        (lambda: step_decay((80, 120)), "fractions of the run"),
        (lambda: step_decay((0.5,), factor=0.0), "factor"),
        (lambda: with_warmup(constant(), 1.0), "fraction"),
        (lambda: with_warmup(constant(), -0.1), "fraction"),
        (lambda: progress(0, 0), "total: got 0"),
        (lambda: progress(-1, 5), "step: got -1"),
    ],
)
def test_refuses_bad_arguments(build, says):
    with pytest.raises(RequestError, match=says):
        build()


@pytest.mark.parametrize(
    "at",
    [
        constant(),
        linear(),
        cosine(),
        cubic(),
        exponential(1.0, 2.0),
        step_decay(),
        with_warmup(constant(), 0.5),
    ],
)
@pytest.mark.parametrize("outside", [-1e-9, 1.0 + 1e-9, math.nan])
def test_refuses_progress_outside_the_run(at, outside):
    with pytest.raises(RequestError, match="progress"):
        at(outside)
