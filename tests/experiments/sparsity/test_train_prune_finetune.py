"""Torch-Pruning's way to a small network, and small from the start: budgets, costs, refusals."""

from __future__ import annotations

import sys

import pytest
import torch

from latewood.core.macs import macs
from latewood.core.measure import parameter_count
from latewood.errors import WorkError
from latewood.experiments.flop_counted_training import (
    build,
    dense_training_macs,
    fit_and_count,
)
from latewood.experiments.sparsity import growth_tasks, train_prune_finetune

FULL = 56_554


@pytest.fixture(scope="module")
def setting():
    return growth_tasks.images(epochs=2)


@pytest.mark.parametrize("keep", [0.5, 0.2, 0.1])
def test_pruned_to_the_largest_network_within_the_budget(setting, keep):
    model = build(setting, 0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    small = train_prune_finetune.prune_to(model, setting, keep=keep)
    # One channel is at most (32 + 64) * 9 weights and what belongs to it.
    assert 0 < int(keep * FULL) - parameter_count(small) < 1_200
    assert small(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_it_costs_half_a_dense_training_and_half_a_small_one(setting):
    model = build(setting, 0)
    half = fit_and_count(setting, model, epochs=1, seed=0)
    found = train_prune_finetune.train_prune_finetune(
        setting, keep=0.2, seed=0, dense=(model, half)
    )
    dense = dense_training_macs(setting)
    assert half == dense // 2
    assert found.training_macs == half + 3 * 19 * 64 * found.macs
    assert found.parameters <= 0.2 * FULL
    assert 0 <= found.score <= 1


def test_pruned_to_multiply_accumulates(setting):
    small = train_prune_finetune.prune_to(build(setting, 0), setting, keep=0.3, measure="macs")
    assert 0.27 < macs(small, setting.task.example_inputs) / 1_788_544 <= 0.3


def test_narrow_from_the_start_costs_its_own_size_all_along(setting):
    found = train_prune_finetune.narrow_from_scratch(setting, keep=0.2, epochs=2, seed=0)
    assert 0.17 * FULL < found.parameters <= 0.2 * FULL
    assert found.training_macs == 2 * 3 * 19 * 64 * found.macs
    assert train_prune_finetune.size(setting, build(setting, 0), "macs") == 1_788_544


def test_a_budget_that_nothing_meets(setting):
    with pytest.raises(WorkError, match="keep: no network has at most"):
        train_prune_finetune.narrow_from_scratch(setting, keep=1e-5, epochs=1, seed=0)


def test_without_torch_pruning_it_says_what_to_install(setting, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(WorkError, match="pip install torch-pruning"):
        train_prune_finetune.prune_to(build(setting, 0), setting, keep=0.2)
