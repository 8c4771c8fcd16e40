"""Least and typical times from a clock that the test moves."""

import itertools

import pytest
import torch

from latewood.core import timing

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch):
    """Time passes only as the forms say."""
    now = [0.0]
    for name in ("thread_time", "perf_counter", "monotonic"):
        monkeypatch.setattr(timing.time, name, lambda: now[0])

    def form(*seconds):
        spent = itertools.chain(seconds, itertools.repeat(seconds[-1]))

        def run():
            now[0] += next(spent)

        return run

    return form


def test_the_least_time_of_each_form(clock):
    # The first two calls only warm up, and are slow.
    slow, fast = clock(9.0, 9.0, 0.5, 0.3, 0.4), clock(9.0, 0.1, 0.2, 0.1, 0.1)
    found = timing.least_times({"slow": slow, "fast": fast}, CPU, seconds=100.0)
    assert found == {"slow": pytest.approx(0.3e6), "fast": pytest.approx(0.1e6)}


def test_turns_go_on_while_a_form_becomes_faster(clock):
    # Disturbed for twenty turns, each a little less.
    disturbed = clock(1.0, 1.0, *[0.9 - 0.02 * each for each in range(20)], 0.1, 0.5)
    found = timing.least_times({"one": disturbed, "other": clock(0.2)}, CPU, seconds=1e3)
    assert found["one"] == pytest.approx(0.1e6)


def test_turns_end_when_nothing_changes_or_time_is_up(clock):
    calls = []
    run = clock(1.0)

    def counted():
        calls.append(None)
        run()

    timing.least_times({"one": counted}, CPU, steady=3, seconds=1e3)
    assert len(calls) == 2 + 1 + 3  # warming up, the first turn, and those that change nothing
    calls.clear()
    timing.least_times({"one": counted}, CPU, steady=100, seconds=2.0)
    assert len(calls) == 2 + 4


@pytest.mark.parametrize(("turn_seconds", "calls"), [(2e-4, 20), (1e-4, 10), (1.0, 50)])
def test_short_forms_are_repeated(clock, turn_seconds, calls):
    count, run = [], clock(1e-5)

    def counted():
        count.append(None)
        run()

    found = timing.least_times({"short": counted}, CPU, turn_seconds=turn_seconds, steady=3)
    assert found["short"] == pytest.approx(10.0)
    assert (len(count) - 2) % calls == 0 and len(count) >= 2 + 4 * calls


def test_a_clock_of_the_callers_own_and_training_steps():
    now = [0.0]
    weight = torch.ones((), requires_grad=True)

    def step():
        now[0] += 0.5
        assert not torch.is_inference_mode_enabled()
        weight.square().backward()

    times = timing.least_times({"step": step}, CPU, clock=lambda: now[0], inference=False)
    assert times == {"step": 0.5e6}
    assert weight.grad >= 2 * (2 + 4)


def test_the_typical_time_is_not_that_of_a_lucky_call(clock):
    # Two calls to warm up, then turns: one was lucky, one was disturbed.
    form = clock(9.0, 0.5, 0.1, 0.5, 0.6, 7.0, 0.5)
    found = timing.typical_times({"one": form, "other": clock(0.2)}, CPU, seconds=0.0)
    assert found == {"one": pytest.approx(0.55e6), "other": pytest.approx(0.2e6)}


def test_measuring_tells_how_far_it_is(clock):
    shares = []
    timing.typical_times({"one": clock(1.0)}, CPU, seconds=8.0, report=shares.append)
    assert shares == [number / 8 for number in range(1, 9)]
    timing.typical_times({"one": clock(1.0)}, CPU, seconds=0.0, report=shares.append)
    assert shares[8:] == [0.25, 0.5, 0.75, 1.0]
