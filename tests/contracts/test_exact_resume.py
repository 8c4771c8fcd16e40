"""A training that was saved and rebuilt in fresh objects ends with the same bits."""

import random

from short_training import TOTAL_STEPS, Training, assert_same

from latewood.core import load_state, save_state


def test_a_resumed_training_ends_with_the_same_bits(component, network, tmp_path):
    steps = random.Random(f"{component} {network}").sample(range(TOTAL_STEPS), 3)
    training = Training(component, network, folder=tmp_path)
    for step in range(TOTAL_STEPS):
        if step in steps:
            save_state(tmp_path / str(step), training.state())
        training.step()
    end = training.snapshot()
    untouched = Training(component, network, folder=tmp_path / "untouched").run()
    assert_same(untouched.snapshot(), end, "saving changed the training")
    final = dict(training.finish().state_dict())
    for step in steps:
        # Other initial weights: what the state lacks would show.
        resumed = Training(component, network, seed=1, folder=tmp_path / f"from-{step}")
        resumed.restore(load_state(tmp_path / str(step))).run()
        assert_same(resumed.snapshot(), end, f"resumed after step {step}")
        assert_same(dict(resumed.finish().state_dict()), final, f"finalized, from step {step}")
        # A step where nothing is due to be seen has no entry in either.
        later = {at: values for at, values in training.seen.items() if at > step}
        again = {at: values for at, values in resumed.seen.items() if at > step}
        assert again.keys() == later.keys()


def test_a_resumed_probe_sees_what_it_would_have_seen(probe, network, tmp_path):
    training = Training(probe, network, folder=tmp_path).run(5)
    training.finish_probes()
    save_state(tmp_path / "state", training.state())
    training.run().finish()
    # A run goes on in its own folder, where a probe may keep what it compares with.
    resumed = Training(probe, network, seed=1, folder=tmp_path)
    resumed.restore(load_state(tmp_path / "state")).run().finish()
    last = max(resumed.seen)
    assert last == max(training.seen) == TOTAL_STEPS
    assert resumed.seen[last] == training.seen[last]
