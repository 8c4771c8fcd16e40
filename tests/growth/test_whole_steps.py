"""Compiled steps that know the stages of a weight, against the parts and blends of torch's own."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from latewood.growth import StageRates, Stages
from latewood.growth import learning_rates as module
from latewood.kernels.dispatch import native
from latewood.kernels.staged_steps import take_steps

pytestmark = pytest.mark.skipif(native() is None, reason="the native kernels are not built")

OPTIMIZERS = {
    "plain": (torch.optim.SGD, {"lr": 0.1}),
    "momentum": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    "dampened": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}),
    "nesterov": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "adam": (torch.optim.Adam, {"lr": 0.01, "weight_decay": 0.1}),
    "adamw": (torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1, "foreach": True}),
}
FIRST, SECOND = torch.tensor([0, 0, 1, 1, 2, 0]), torch.tensor([0, 2, 2, 0, 1])
SHAPES = {"linear": (6, 5), "bias": (6,), "kernel": (6, 5, 3, 3), "table": (9, 5), "old": (4, 3)}
"""Weights that grew along both axes, one, the second alone, and none."""


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for name, shape in SHAPES.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape, generator=generator)))

    def set_gradients(self, step):
        generator = torch.Generator().manual_seed(100 + step)
        for parameter in self.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)


def stages():
    rows = {(name, 0): FIRST for name in ("linear", "bias", "kernel")}
    columns = {(name, 1): SECOND for name in ("linear", "kernel", "table")}
    return Stages(2, {**rows, **columns})


def train(kind, options, *, steps=8, change=lambda model, step: None, **settings):
    """A training in which all stages are newborn at step 3."""
    model, followed = Model(), Stages()
    optimizer = kind(model.parameters(), **options)
    rates = StageRates(model, followed, **settings)
    rates.attach(optimizer)
    for step in range(steps):
        if step == 3:
            followed.load_state_dict(stages().state_dict())
        change(model, step)
        model.set_gradients(step)
        optimizer.step()
    return model, optimizer


@pytest.fixture
def taken(monkeypatch):
    """The weights of all compiled steps."""
    shapes = []

    def noted(steps):
        shapes.extend(tuple(step.parameter.shape) for step in steps)
        take_steps(steps)

    monkeypatch.setattr(module, "take_steps", noted)
    return shapes


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("counters", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_compiled_step_is_that_of_the_parts(name, counters, threads, taken, monkeypatch):
    kind, options = OPTIMIZERS[name]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        mine, optimizer = train(kind, options, counters=counters, warmup=2, every=4)
        assert set(taken) == {SHAPES[n] for n in ("linear", "bias", "kernel", "table")}
        taken.clear()
        monkeypatch.setenv("LATEWOOD_KERNELS", "reference")
        theirs, reference = train(kind, options, counters=counters, warmup=2, every=4)
        assert not taken
    finally:
        torch.set_num_threads(before)
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-6)
    states = optimizer.state_dict()["state"], reference.state_dict()["state"]
    assert states[0].keys() == states[1].keys()
    for number, entries in states[1].items():
        torch.testing.assert_close(states[0][number], entries, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(
    "options",
    [{"maximize": True}, {"amsgrad": True}, {"fused": True}, {"lr": torch.tensor(0.01)}],
    ids=lambda options: next(iter(options)),
)
def test_options_that_it_does_not_know_are_left_to_torch(options, taken):
    train(torch.optim.Adam, {"lr": 0.01, **options})
    assert not taken


def test_other_classes_are_left_to_their_own_steps(taken):
    class Mine(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)

    train(Mine, {"lr": 0.1})
    assert not taken


def test_weights_that_do_not_lie_as_it_needs_are_left_to_torch(taken):
    def reordered(model, step):
        model.kernel.data = model.kernel.data.to(memory_format=torch.channels_last)
        model.linear.data = model.linear.data.t().contiguous().t()

    train(torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}, change=reordered, warmup=2)
    assert set(taken) == {SHAPES["bias"], SHAPES["table"]}


def test_a_step_that_fails_counts_no_step(taken):
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    model.set_gradients(0)
    optimizer.step()
    StageRates(model, stages(), counters=False).attach(optimizer)
    before = copy.deepcopy(optimizer.state_dict())
    # A weight without stages cannot step, so the compiled ones must not either.
    optimizer.state[model.old]["exp_avg"] = torch.zeros(7)
    weight = model.linear.detach().clone()
    with pytest.raises(RuntimeError):
        optimizer.step()
    assert not taken and torch.equal(model.linear, weight)
    assert optimizer.state[model.linear]["step"] == before["state"][0]["step"]


def test_autograd_notices_that_a_weight_was_written():
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    StageRates(model, stages()).attach(optimizer)
    loss = model.linear.square().sum()
    model.set_gradients(0)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
