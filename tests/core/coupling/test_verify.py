"""A plan is verified by removing and by adding, in both modes, and the model stays as it is."""

from __future__ import annotations

import copy
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from latewood.core.coupling import ChannelPlan, trace_channels, verify_plan
from latewood.core.coupling import verify as verify_module
from latewood.core.coupling.model_runs import ModelRuns
from latewood.errors import WorkError


class Noisy(nn.Module):
    """Batch norm, dropout of every form, and a norm over the channels."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv1d(2, 8, 1), nn.BatchNorm1d(8)
        self.drop, self.lstm = nn.Dropout(0.5), nn.LSTM(8, 6, 2, dropout=0.5, batch_first=True)
        self.out, self.last, self.head = nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 2)

    def forward(self, x):
        x = self.drop(torch.relu(self.norm(self.stem(x)))).transpose(1, 2)
        x = F.dropout(self.lstm(x)[0], 0.3, self.training)
        return self.head(self.last(self.out(x)))


def test_a_model_with_dropout_is_verified_in_both_modes_and_stays_as_it_is():
    torch.manual_seed(0)
    model = Noisy()
    inputs = torch.randn(3, 2, 4)
    plan = trace_channels(model, inputs)
    before = copy.deepcopy(model.state_dict())
    places = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    assert any(group.padding for group in plan)
    state = torch.get_rng_state()
    assert verify_plan(model, plan, inputs) < 1e-13
    assert torch.equal(state, torch.get_rng_state())
    assert model.training
    assert (model.drop.p, model.lstm.dropout, model.last.eps) == (0.5, 0.5, 1e-5)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert tensor.data_ptr() == places[name]


class ModeDependent(nn.Module):
    """In training mode its code holds a number of channels that the trace never sees."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x):
        x = torch.tanh(self.first(x))
        return self.last(x * (8 / x.shape[1]) if self.training else x)


def test_what_only_training_mode_shows_is_found():
    model, inputs = ModeDependent(), torch.randn(4, 3)
    plan = trace_channels(model, inputs)
    with pytest.raises(WorkError, match=r"changes the output by .*at fault: first \(changes by"):
        verify_plan(model, plan, inputs)


class Readers(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(3, 6), nn.RMSNorm(6, eps=0.1), nn.Linear(6, 2)

    def forward(self, x):
        return self.last(self.norm(self.first(x)))


def test_what_only_widening_shows_is_found():
    """A plan that leaves the barrier of a norm out is refused; so is one that pads it wrongly."""
    model, inputs = Readers(), torch.randn(4, 3)
    plan = trace_channels(model, inputs)
    assert verify_plan(model, plan, inputs) < 1e-13
    (group,) = (group for group in plan if group.padding)
    wrong = replace(group, norms=(replace(group.norms[0], eps=None),))
    groups = tuple(wrong if other is group else other for other in plan)
    with pytest.raises(WorkError, match=r"adding channels .* at fault: first \(changes by"):
        verify_plan(model, ChannelPlan(groups), inputs)
    assert verify_plan(model, ChannelPlan(groups), inputs, groups=["last.inputs"]) == 0.0


def test_the_copy_takes_no_more_memory_than_the_tensors_that_change(monkeypatch):
    model = nn.Sequential(
        nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3)
    )
    plan = trace_channels(model, torch.randn(1, 64))
    twin = verify_module._sharing_copy(model)
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert one is not other
        assert one.data_ptr() == other.data_ptr()
    made = []
    monkeypatch.setattr(
        verify_module, "_stored_in_double", lambda groups, places: made.append(groups) or True
    )
    assert verify_plan(model, plan, torch.randn(1, 64)) < 1e-12
    assert made == [[]]  # nothing is padded, so nothing is stored in float64


def test_a_large_padded_model_is_judged_by_its_own_precision(monkeypatch):
    monkeypatch.setattr(verify_module, "VERIFIED_SIZE", 0)
    model, inputs = Noisy(), torch.randn(3, 2, 4)
    plan = trace_channels(model, inputs)
    assert verify_plan(model, plan, inputs) < 1e-13


def test_a_mode_in_which_the_model_does_not_run_is_left_out():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    inputs = torch.randn(1, 3)  # too few for statistics of the batch
    plan = trace_channels(model, inputs)
    assert verify_plan(model, plan, inputs) < 1e-13


def test_what_numpy_and_python_draw_in_training_is_the_same_in_each_run():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x):
            if self.training:
                x = x * np.random.rand() + random.random()  # noqa: NPY002
            return self.last(self.first(x).relu())

    model, inputs = Masked(), torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    before = random.getstate()
    assert verify_plan(model, trace_channels(model, inputs), inputs) <= 1e-12
    assert random.getstate() == before


def test_training_mode_on_zeros_is_judged_by_how_it_magnifies_rounding():
    layers = [nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)]
    for _ in range(5):
        layers += [nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, 2))
    zeros = torch.zeros(1, 3, 2, 2)
    runs = ModelRuns.of(model, zeros)
    assert runs.magnification(runs.outputs()) > 1e6
    # Real values are not excused by that.
    runs = ModelRuns.of(model, torch.randn(4, 3, 2, 2))
    assert 0.0 < runs.magnification(runs.outputs()) < 1e5
    assert verify_plan(model, trace_channels(model, zeros), zeros) <= 1e-12
