"""Epochs: where they begin, how far a run has come, and lengths that fit no run."""

import itertools
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latewood.core import EpochCounter, Epochs
from latewood.errors import RequestError

lengths = st.lists(st.integers(1, 9), min_size=1, max_size=8)


@given(lengths=lengths, data=st.data())
def test_it_agrees_with_counting_step_by_step(lengths, data):
    total = data.draw(st.integers(sum(lengths) - lengths[-1] + 1, sum(lengths)))
    epochs = Epochs(lengths, total)
    owners = [number for number, length in enumerate(lengths) for _ in range(length)]
    assert [epochs.of(step) for step in range(sum(lengths))] == owners
    firsts = [0, *itertools.accumulate(lengths)][: len(lengths)]
    assert [step for step in range(sum(lengths)) if epochs.begins(step)] == firsts
    assert [epochs.start(number) for number in range(len(lengths))] == firsts
    assert epochs.count == len(lengths)
    passes = [sum(Fraction(1, lengths[owner]) for owner in owners[:step]) for step in range(total)]
    assert [epochs.passes(step) for step in range(total)] == passes


@given(length=st.integers(1, 40), total=st.integers(1, 300), data=st.data())
def test_equal_lengths_give_the_bits_of_one_number(length, total, data):
    one, each = Epochs(length, total), Epochs([length] * -(-total // length), total)
    share = data.draw(st.floats(0, 1))
    assert one.count == each.count and one.steps_within(share) == each.steps_within(share)
    for step in range(total + 2 * length):
        assert one.of(step) == each.of(step) == step // length
        assert one.begins(step) == each.begins(step) == (step % length == 0)
        assert one.progress(step) == each.progress(step) == min(1.0, step / total)
        assert float(one.passes(step)) == float(each.passes(step)) == step / length


@given(lengths=lengths)
def test_progress_counts_samples(lengths):
    epochs = Epochs(lengths)
    for number in range(len(lengths)):
        assert epochs.progress(epochs.start(number)) == number / len(lengths)
    assert epochs.progress(sum(lengths)) == epochs.progress(sum(lengths) + 5) == 1.0


def test_worked_example():
    # 60 samples in batches of 20, of 12 and of 6.
    epochs = Epochs([3, 5, 10])
    assert [epochs.progress(step) for step in (0, 1, 3, 8, 13, 18)] == [
        *(0.0, 1 / 9, 1 / 3, 2 / 3, 5 / 6, 1.0)
    ]
    assert epochs.steps_within(0.5) == 5.5
    assert epochs.of(20) == 3 and epochs.start(4) == 28  # what comes after is as the last


def test_without_an_end_nobody_knows_how_far_a_run_has_come():
    assert Epochs(4).of(9) == 2
    for ask in (lambda: Epochs(4).count, lambda: Epochs(4).progress(1)):
        with pytest.raises(RequestError, match="total_steps: got None"):
            ask()


@pytest.mark.parametrize(
    ("given", "total", "message"),
    [
        (0, 5, "steps_per_epoch: got 0"),
        (2.5, 5, "steps_per_epoch: got 2.5"),
        (True, 5, "steps_per_epoch: got True"),
        ("34", 5, "steps_per_epoch: got '34'"),
        ([3, 0], 3, r"steps_per_epoch\[1\]: got 0"),
        ([], None, "steps_per_epoch: got '0 epochs"),
        ([3, 3], 7, "2 epochs of 6 steps in all'; expected .* after 7 steps"),
        ([3, 3], 3, "2 epochs of 6 steps in all'; expected .* after 3 steps"),
        (3, 0, "total_steps: got 0"),
    ],
)
def test_lengths_that_fit_no_run_are_refused(given, total, message):
    with pytest.raises(RequestError, match=message):
        Epochs(given, total)


def test_a_counter_wants_every_epoch_begun_before_its_first_step():
    counter = EpochCounter(Epochs([2, 1]))
    with pytest.raises(RequestError, match="step: call restructure"):
        counter.count()
    assert counter.is_due() and counter.step == 0
    counter.begin()
    assert not counter.is_due()
    counter.count()
    with pytest.raises(RequestError, match="restructure: called 1 steps into an epoch of 2"):
        counter.is_due()
    counter.count()
    assert counter.is_due() and (counter.epoch, counter.step) == (1, 2)
    with pytest.raises(RequestError, match="step: call restructure"):
        counter.count()
