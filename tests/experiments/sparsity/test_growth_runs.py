"""Growing on a setting: the budget, and two ways of counting what it took."""

from __future__ import annotations

import pytest

from latewood.experiments.flop_counted_training import (
    build,
    dense_training_macs,
    fit_and_count,
)
from latewood.experiments.sparsity import growth_runs, growth_tasks
from latewood.sparsity.structured import StructuredSparsification


@pytest.mark.parametrize("measure", ["parameters", "macs"])
def test_the_budget_is_met_and_never_exceeded(measure):
    setting = growth_tasks.images(epochs=3)
    found = growth_runs.grow(setting, keep=0.3, measure=measure, epochs=3, seed=0)
    share = {"parameters": found.parameters / 56_554, "macs": found.macs / 1_788_544}[measure]
    assert 0.29 <= share <= 0.3
    # Growing, training takes at most what the final network would have taken from the start.
    assert found.training_macs < found.macs / 1_788_544 * dense_training_macs(setting)


def test_what_it_costs_is_what_the_method_says():
    setting = growth_tasks.images(epochs=4)
    model = build(setting, 0)
    method = StructuredSparsification(
        model,
        setting.task.example_inputs,
        budget={"parameters": 0.3},
        total_steps=4 * setting.period,
        steps_per_epoch=setting.period,
    )
    spent = fit_and_count(setting, model, epochs=4, seed=0, method=method)
    assert spent == pytest.approx(3 * 64 * method.metrics()["training/macs"])
    assert spent / dense_training_macs(setting) == pytest.approx(method.metrics()["training/share"])
