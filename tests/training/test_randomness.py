# ruff: noqa: NPY002
"""Streams of random numbers that depend on their names alone."""

import random

import numpy as np
import pytest
import torch

from latewood.training.randomness import (
    caller_unchanged,
    derive,
    host_random_state,
    restore_host_random_state,
    seed_torch,
)


def test_streams_are_reproducible_and_apart():
    seeds = {derive(s, name, k) for s in range(5) for name in ("a", "b") for k in range(50)}
    assert len(seeds) == 500
    assert derive(3, "a", 1) == derive(3, "a", 1)
    assert all(0 <= seed < 2**63 for seed in seeds)
    # Neighbouring names must not be told apart by their text running together.
    assert derive(0, "a", 11) != derive(0, "a1", 1)


def test_seeding_torch_is_what_manual_seed_does():
    torch.manual_seed(7)
    expected = torch.rand(5)
    seed_torch(7, torch.device("cpu"))
    assert torch.equal(torch.rand(5), expected)


def test_the_states_of_python_and_numpy_come_back():
    np.random.randn(3)  # leaves half a pair of normal numbers behind
    state = host_random_state()
    expected = random.random(), np.random.rand(3), np.random.randn(3)
    random.seed(1)
    np.random.seed(1)
    restore_host_random_state(state)
    assert random.random() == expected[0]
    assert np.array_equal(np.random.rand(3), expected[1])
    assert np.array_equal(np.random.randn(3), expected[2])


@pytest.mark.parametrize("fails", [False, True])
def test_the_caller_gets_back_what_it_had(fails):
    threads = torch.get_num_threads()
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(3)
        random.seed(3)
        np.random.seed(3)
        expected = torch.rand(2), random.random(), np.random.rand()
        torch.manual_seed(3)
        random.seed(3)
        np.random.seed(3)
        try:
            with caller_unchanged():
                assert torch.get_default_dtype() is torch.float32
                torch.manual_seed(99)
                random.seed(99)
                np.random.seed(99)
                torch.set_num_threads(threads + 1)
                torch.set_default_dtype(torch.bfloat16)
                if fails:
                    raise KeyError
        except KeyError:
            pass
        assert torch.get_default_dtype() is torch.float64
        assert torch.get_num_threads() == threads
        assert torch.equal(torch.rand(2), expected[0])
        assert random.random() == expected[1]
        assert np.random.rand() == expected[2]
    finally:
        torch.set_default_dtype(torch.float32)
