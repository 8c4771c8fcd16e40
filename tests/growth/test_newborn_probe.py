from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from latewood.core import Probe
from latewood.errors import RequestError
from latewood.growth import NewbornProbe, Stages, widen


def grown():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    inputs, stages = torch.randn(8, 4, dtype=torch.float64), Stages()
    probe = NewbornProbe(model, stages, every=1)
    assert probe.observe(0) == []
    widen(model, inputs, {"0": 10}, stages=stages)
    return model, inputs, probe


def test_copies_are_one_unit_until_they_have_been_trained():
    model, inputs, probe = grown()
    assert isinstance(probe, Probe) and not probe.every_process
    (first,) = probe.observe(0)
    assert first.values == {"newborn_copy_similarity": pytest.approx(1.0)}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    similarities = []
    for step in range(1, 6):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), torch.arange(8) % 3).backward()
        optimizer.step()
        (seen,) = probe.observe(step)
        similarities.append(seen.values["newborn_copy_similarity"])
        gradient, update = (seen.values[f"newborn_{k}_ratio"] for k in ("gradient", "update"))
        # Plain gradient descent moves every entry by its gradient.
        assert update == pytest.approx(gradient) and gradient > 0
    assert similarities == sorted(similarities, reverse=True) and similarities[-1] < 1 - 1e-5
    assert probe.finish() == []


def test_ratios_are_those_of_newborn_and_old_entries():
    model, _, probe = grown()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    with torch.no_grad():
        model[0].weight.grad[6:] = 3.0
        model[2].weight.grad[:, 6:] = 3.0
    (seen,) = probe.observe(1)
    assert seen.values["newborn_gradient_ratio"] == pytest.approx(3.0)


def test_it_only_looks_and_only_when_due():
    model, inputs, probe = grown()
    probe.every = 4
    model(inputs).sum().backward()
    before = copy.deepcopy(model)
    random = torch.get_rng_state()
    assert [len(probe.observe(step)) for step in range(5)] == [1, 0, 0, 0, 1]
    assert torch.equal(torch.get_rng_state(), random)
    for one, two in zip(model.parameters(), before.parameters(), strict=True):
        assert torch.equal(one, two) and one.grad is not None


def test_bad_intervals_are_refused():
    with pytest.raises(RequestError, match="every: got 0"):
        NewbornProbe(nn.Linear(2, 2), Stages(), every=0)
