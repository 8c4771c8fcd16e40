"""A deep copy of model, method, probe and optimizer together goes on alone."""

import copy

import pytest
from short_training import TOTAL_STEPS, Training, assert_same


@pytest.mark.parametrize("step", [0, 6, 10])  # before the start, between two rounds, near the end
def test_a_copy_goes_on_alone(component, network, step, tmp_path):
    training = Training(component, network, folder=tmp_path, fresh=True).run(step)
    before = training.snapshot()
    copied = copy.deepcopy(training)
    assert_same(training.snapshot(), before, "copying changed the original")
    assert_same(copied.snapshot(), before, "the copy differs")
    copied.run()
    end = copied.snapshot()
    final = dict(copied.finish().state_dict())
    assert_same(training.snapshot(), before, "the copy's steps changed the original")
    training.run()
    assert_same(training.snapshot(), end, "the original went another way")
    assert_same(dict(training.finish().state_dict()), final, "finalized")
    assert training.steps == copied.steps == TOTAL_STEPS
    assert training.seen == copied.seen


def test_the_original_may_end_before_its_copy(component, network, tmp_path):
    training = Training(component, network, folder=tmp_path, fresh=True).run(6)
    copied = copy.deepcopy(training)
    training.run().finish()
    copied.run().finish()
    assert_same(dict(copied.model.state_dict()), dict(training.model.state_dict()))
