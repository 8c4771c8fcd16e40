"""Torch-Pruning's way to a small network, and small from the start: budgets, costs, refusals."""

from __future__ import annotations

import sys

import pytest
import torch

from latewood.core.macs import macs
from latewood.core.measure import parameter_count
from latewood.errors import WorkError
from latewood.experiments.sparsity import growth_tasks, train_prune_finetune
from latewood.experiments.sparsity.flop_counted_training import build, dense_training_macs, fit

FULL = 56_554


@pytest.fixture(scope="module")
def course():
    return growth_tasks.images(epochs=2)


@pytest.mark.parametrize("keep", [0.5, 0.2, 0.1])
def test_pruned_to_the_largest_network_within_the_budget(course, keep):
    model = build(course, 0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    small = train_prune_finetune.prune_to(model, course, keep=keep)
    # One channel is at most (32 + 64) * 9 weights and what belongs to it.
    assert 0 < int(keep * FULL) - parameter_count(small) < 1_200
    assert small(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_it_costs_half_a_dense_training_and_half_a_small_one(course):
    model = build(course, 0)
    half = fit(course, model, epochs=1, seed=0)
    found = train_prune_finetune.train_prune_finetune(course, keep=0.2, seed=0, dense=(model, half))
    dense = dense_training_macs(course)
    assert half == dense // 2
    assert found.training_macs == half + 3 * 19 * 64 * found.macs
    assert found.parameters <= 0.2 * FULL
    assert 0 <= found.score <= 1


def test_pruned_to_multiply_accumulates(course):
    small = train_prune_finetune.prune_to(build(course, 0), course, keep=0.3, measure="macs")
    assert 0.27 < macs(small, course.task.example_inputs) / 1_788_544 <= 0.3


def test_narrow_from_the_start_costs_its_own_size_all_along(course):
    found = train_prune_finetune.narrow_from_scratch(course, keep=0.2, epochs=2, seed=0)
    assert 0.17 * FULL < found.parameters <= 0.2 * FULL
    assert found.training_macs == 2 * 3 * 19 * 64 * found.macs
    assert train_prune_finetune.size(course, build(course, 0), "macs") == 1_788_544


def test_a_budget_that_nothing_meets(course):
    with pytest.raises(WorkError, match="keep: no network has at most"):
        train_prune_finetune.narrow_from_scratch(course, keep=1e-5, epochs=1, seed=0)


def test_without_torch_pruning_it_says_what_to_install(course, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(WorkError, match="pip install torch-pruning"):
        train_prune_finetune.prune_to(build(course, 0), course, keep=0.2)
