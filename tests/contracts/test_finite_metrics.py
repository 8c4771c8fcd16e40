"""Metrics and observations are finite floats under names that stay."""

import math

from short_training import TOTAL_STEPS, Training


def assert_finite(values):
    assert type(values) is dict
    for name, value in values.items():
        assert type(name) is str and name
        # Not a tensor, an integer or a boolean: what is logged has one type.
        assert type(value) is float, f"{name} is a {type(value)}"
        assert math.isfinite(value), f"{name} is {value}"


def test_metrics_are_finite_floats_under_the_same_names_at_all_times(method, network):
    training = Training(method, network)
    first = training.method.metrics()
    assert_finite(first)
    for _ in range(TOTAL_STEPS):
        training.begin()
        training.backward()
        between = training.method.metrics()
        training.update()
        after = training.method.metrics()
        for metrics in (between, after):
            assert_finite(metrics)
            assert list(metrics) == list(first)
    training.finish()
    assert_finite(training.method.metrics())
    assert list(training.method.metrics()) == list(first)


def test_asking_for_metrics_changes_nothing(method, network):
    asked, silent = Training(method, network), Training(method, network)
    for _ in range(TOTAL_STEPS):
        asked.step()
        asked.method.metrics()
        silent.step()
    assert asked.method.metrics() == silent.method.metrics()


def test_observations_are_finite_floats_of_the_steps_that_were_due(probe, network, tmp_path):
    training = Training(probe, network, folder=tmp_path).run()
    training.finish()
    assert training.seen and list(training.seen) == sorted(training.seen)
    assert set(training.seen) <= set(range(TOTAL_STEPS + 1))
    for values in training.seen.values():
        assert_finite(values)
    # The end has been looked at, and is said once.
    assert TOTAL_STEPS in training.seen
    assert training.probes[0].finish() == []
    assert type(training.probes[0].every_process) is bool


def test_a_penalty_is_a_finite_scalar(method, network):
    training = Training(method, network)
    for _ in range(TOTAL_STEPS):
        training.begin()
        penalty = training.method.penalty()
        assert penalty.shape == () and penalty.is_floating_point() and penalty.isfinite()
        training.backward()
        training.update()
