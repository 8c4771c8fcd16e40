"""When a probe observes, on a clock that the test moves."""

import math

import pytest

from latewood.errors import RequestError
from latewood.spectra.tracking import observation_schedule
from latewood.spectra.tracking.observation_schedule import (
    ObservationSchedule,
    ObservationSettings,
)


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 50.0

    monkeypatch.setattr(observation_schedule.time, "perf_counter", lambda: Clock.now)
    return Clock


def schedule(*args, **options):
    return ObservationSchedule(ObservationSettings(*args, **options))


def observed(clock, auto, steps, *, step_seconds, cost):
    """The steps at which "auto" observes, and the fraction of the time after each."""
    seen, shares = [], []
    for step in range(steps + 1):
        if auto.due(step):
            with auto.measured():
                clock.now += cost(step)
            seen.append(step)
            shares.append(auto.overhead)
        clock.now += step_seconds
    return seen, shares


@pytest.mark.parametrize("budget", [0.01, 0.03, 0.2])
@pytest.mark.parametrize("cost", [0.001, 0.1, 3.0])
def test_auto_stays_within_its_budget_and_uses_it(clock, budget, cost):
    auto = schedule("auto", budget=budget)
    seen, shares = observed(clock, auto, 20_000, step_seconds=0.1, cost=lambda step: cost)
    assert seen[0] == 0
    assert max(shares[1:], default=0) <= budget + 1e-9
    if cost == 0.1:
        assert auto.overhead > 0.8 * budget
    elif cost == 0.001:
        assert len(seen) == 20_001 or auto.overhead > 0.8 * budget
    else:
        assert auto.overhead > 0.6 * budget


@pytest.mark.parametrize("steps", range(600, 640))
def test_auto_keeps_room_for_the_last_step(clock, steps):
    # Also when that observation takes twice as long as any before.
    auto = schedule("auto", budget=0.1, total_steps=steps)

    def cost(step):
        return 0.8 if step == steps else 0.4

    seen, shares = observed(clock, auto, steps, step_seconds=0.1, cost=cost)
    assert seen[0] == 0
    assert seen[-1] == steps
    assert len(seen) > 3
    assert max(shares[1:]) <= 0.1 + 1e-9


@pytest.mark.parametrize("steps", range(600, 640, 7))
def test_room_for_a_last_observation_that_costs_several(clock, steps):
    auto = schedule("auto", budget=0.1, total_steps=steps, parts=5)

    def cost(step):
        return 2.0 if step in (0, steps) else 0.2

    seen, shares = observed(clock, auto, steps, step_seconds=0.5, cost=cost)
    assert len(seen) > 20
    assert max(shares[1:]) <= 0.1 + 1e-9


def test_auto_expects_twice_the_dearest_of_the_last_three(clock):
    # Observations of uneven cost must not slip over the budget by the cheap ones among them.
    auto = schedule("auto", budget=0.1)
    costs = iter([5.0] + [0.1, 0.1, 4.0] * 10_000)
    seen, shares = observed(clock, auto, 10_000, step_seconds=0.1, cost=lambda step: next(costs))
    assert len(seen) > 20
    assert max(shares[4:]) <= 0.1 + 1e-9


def test_three_observations_are_remembered(clock):
    auto = schedule("auto", budget=0.1)
    auto.due(0)
    for cost in (4, 1, 1):
        with auto.measured():
            clock.now += cost
    clock.now = 50 + 10 * (6 + 8) - 1
    assert not auto.due(1)
    clock.now += 2
    assert auto.due(2)
    with auto.measured():
        clock.now += 1
    clock.now = 50 + 10 * (7 + 2) + 1
    assert auto.due(3)


def test_first_observation_of_a_resumed_training(clock):
    auto = schedule("auto", total_steps=100)
    assert auto.due(37)
    with auto.measured():
        clock.now += 1
    assert not auto.due(38)
    assert auto.due(100)


def test_a_quiet_question_is_right_and_counts(clock):
    auto = schedule("auto", budget=0.1, total_steps=90)
    assert not auto.quiet(0, clock.now)
    assert auto.due(0)
    with auto.measured():
        clock.now += 1
    assert not auto.quiet(1, clock.now)  # not before the first refusal
    assert not auto.due(1)
    # One second and room for four more, in a tenth of the time.
    clock.now = 50 + 49.9
    assert auto.quiet(2, clock.now - 0.25)
    assert auto.spent == 1.5
    assert not auto.quiet(90, clock.now)
    clock.now = 50 + 50.1
    assert not auto.quiet(3, clock.now)
    assert not auto.due(3)  # as the question was not free
    clock.now = 50 + 55.1
    assert not auto.quiet(4, clock.now)
    assert auto.due(4)


def questions(clock, auto, steps, *, step_seconds):
    """As a probe asks: the steps that look at the clock, of which the last is due or not."""
    looked = []
    for step in range(1, steps + 1):
        clock.now += step_seconds
        if not auto.passes(step):
            looked.append(step)
            if not auto.quiet(step, clock.now) and auto.due(step):
                return looked
    return looked


def test_most_steps_are_passed_over_without_a_look_at_the_clock(clock):
    auto = schedule("auto", budget=0.1)
    assert auto.due(0)
    with auto.measured():
        clock.now += 1
    # One second and room for two more in a tenth of the time: due at 30 s, after 290 steps.
    looked = questions(clock, auto, 1000, step_seconds=0.1)
    assert looked[-1] in (290, 291)
    assert len(looked) < 15


def test_passing_stops_at_the_last_step_and_behind_an_observation(clock):
    auto = schedule("auto", budget=0.1, total_steps=100)
    assert auto.due(0)
    with auto.measured():
        clock.now += 1
    assert questions(clock, auto, 1000, step_seconds=0.1)[-1] == 100
    with auto.measured():
        clock.now += 1
    assert not auto.passes(101)


def test_steps_that_grow_longer_do_not_miss_their_time_by_much(clock):
    auto = schedule("auto", budget=0.1)
    assert auto.due(0)
    with auto.measured():
        clock.now += 1
    questions(clock, auto, 8, step_seconds=0.1)
    start = clock.now
    questions(clock, auto, 1000, step_seconds=0.2)
    # Half of the steps that were left last twice as long: as long as all of them would have.
    assert clock.now - start <= 30.5


def test_what_passing_costs_is_counted(clock, monkeypatch):
    auto = schedule("auto", budget=0.1)
    monkeypatch.setattr(auto, "_pass_seconds", 0.001)
    assert auto.due(0)
    with auto.measured():
        clock.now += 1
    looked = questions(clock, auto, 1000, step_seconds=0.1)
    assert auto.spent == pytest.approx(1 + 0.001 * (looked[-1] - len(looked)))


def test_the_slower_step_behind_an_observation_is_counted(clock):
    auto = schedule("auto", budget=0.1)
    assert auto.due(0)
    with auto.measured():
        clock.now += 1
    looked = questions(clock, auto, 1000, step_seconds=0.1)
    assert auto.spent == 1
    with auto.measured():
        clock.now += 1
    clock.now += 0.35
    auto.quiet(looked[-1] + 1, clock.now)
    assert auto.spent == pytest.approx(2 + 0.25)


def test_numbers_and_epochs():
    assert [step for step in range(9) if schedule(4).due(step)] == [0, 4, 8]
    epochs = schedule("epoch", steps_per_epoch=3)
    assert [step for step in range(9) if epochs.due(step)] == [0, 3, 6]


def test_overhead_is_a_share_of_all_time(clock):
    steady = schedule(1)
    assert steady.overhead == 0
    steady.due(0)
    assert steady.overhead == 0
    with steady.measured():
        clock.now += 1
    clock.now += 3
    assert steady.overhead == 0.25


def test_parts_take_turns_and_full_observations_come_round():
    turns = schedule(1, parts=2, full_every=2, total_steps=9)
    extents = [turns.next_extent(step) for step in (0, 1, 2, 3, 4, 9)]
    assert [extent.turn for extent in extents] == [None, 1, 2, 3, 4, None]
    assert [extent.full for extent in extents] == [True, True, False, False, True, True]


@pytest.mark.parametrize(
    ("every", "options", "named"),
    [
        (0, {}, "every"),
        (-3, {}, "every"),
        ("often", {}, "every"),
        (1.5, {}, "every"),
        (None, {}, "every"),
        ("epoch", {}, "steps_per_epoch"),
        ("epoch", {"steps_per_epoch": 0}, "steps_per_epoch"),
        (1, {"parts": 0}, "parts"),
        (1, {"full_every": 0}, "full_every"),
        ("auto", {"budget": 0}, "budget"),
        ("auto", {"budget": 1}, "budget"),
        ("auto", {"budget": math.nan}, "budget"),
    ],
)
def test_bad_arguments_are_refused(every, options, named):
    with pytest.raises(RequestError, match=named):
        schedule(every, **options)
