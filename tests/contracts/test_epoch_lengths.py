"""Epochs may have different lengths, as they do where the batch size changes on the way."""

import pytest
from short_training import TOTAL_STEPS, Training, assert_same

from latewood.core import load_state, save_state
from latewood.errors import RequestError


def test_equal_lengths_one_by_one_give_the_bits_of_the_number(method, network):
    one = Training(method, network, steps_per_epoch=3).run()
    each = Training(method, network, steps_per_epoch=[3] * 4).run()
    assert_same(each.snapshot(), one.snapshot())
    assert_same(dict(each.finish().state_dict()), dict(one.finish().state_dict()))


def test_a_training_with_unequal_epochs_ends_and_resumes_to_the_bit(method, network, tmp_path):
    lengths = [2, 1, 4, 5]
    training = Training(method, network, steps_per_epoch=lengths)
    for step in range(TOTAL_STEPS):
        if step in (3, 5):
            save_state(tmp_path / str(step), training.state())
        training.step()
    end = training.snapshot()
    for step in (3, 5):
        resumed = Training(method, network, seed=1, steps_per_epoch=lengths)
        resumed.restore(load_state(tmp_path / str(step))).run()
        assert_same(resumed.snapshot(), end)
    assert all(value.isfinite().all() for value in training.finish().state_dict().values())


def test_a_probe_sees_the_same_with_equal_lengths_one_by_one(probe, tmp_path):
    one = Training(probe, "mlp", folder=tmp_path / "one", steps_per_epoch=3).run()
    each = Training(probe, "mlp", folder=tmp_path / "each", steps_per_epoch=[3] * 4).run()
    one.finish(), each.finish()
    assert one.seen.keys() == each.seen.keys() and one.seen


@pytest.mark.parametrize("lengths", [[3, 3], [3, 3, 3, 3, 3], [3, 0, 9], [], [3, 3, 3, 2.5]])
def test_lengths_that_do_not_end_with_the_run_are_refused(method, lengths):
    with pytest.raises(RequestError, match="steps_per_epoch"):
        Training(method, "mlp", steps_per_epoch=lengths)
