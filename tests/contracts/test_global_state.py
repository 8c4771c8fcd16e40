"""Nothing is drawn from global generators, and no setting of the process is changed."""

import random

import numpy
import pytest
import torch
from short_training import Training, assert_same


def numpy_state():
    name, keys, *rest = numpy.random.get_state()  # noqa: NPY002
    return (name, keys.tolist(), *rest)


def global_state():
    return {
        "torch": torch.get_rng_state(),
        "numpy": numpy_state(),
        "random": random.getstate(),
        "dtype": str(torch.get_default_dtype()),
        "threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def test_global_generators_and_settings_stay_as_they_are(component, network, tmp_path):
    before = global_state()
    training = Training(component, network, folder=tmp_path, fresh=True)
    assert_same(global_state(), before, "after construction")
    training.run()
    assert_same(global_state(), before, "after the steps")
    training.finish()
    assert_same(global_state(), before, "after the end")


@pytest.fixture
def seeded():
    """Sets the global generators, and puts them back after the test."""
    before = torch.get_rng_state(), numpy_state(), random.getstate()

    def seed(value):
        torch.manual_seed(value)
        numpy.random.seed(value)  # noqa: NPY002
        random.seed(value)

    yield seed
    torch.set_rng_state(before[0])
    numpy.random.set_state(before[1])  # noqa: NPY002
    random.setstate(before[2])


def test_the_outcome_does_not_depend_on_global_generators(component, network, seeded, tmp_path):
    outcomes = []
    for value in (1, 2):
        seeded(value)
        training = Training(component, network, folder=tmp_path / str(value), fresh=True).run()
        outcomes.append([training.snapshot(), training.finish().state_dict(), training.seen])
    assert_same(*outcomes)
