"""Training that counts: by hand on a tiny network, with and without a method that restructures."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from latewood.core import SHAPES
from latewood.experiments import flop_counted_training
from latewood.tasks import Classification, Task, TensorDataset


def _setting(**changes) -> flop_counted_training.TrainingSetting:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(22, 4, generator=generator)
    data = TensorDataset(inputs, (inputs[:, 0] > 0).long())
    task = Task(
        name="signs",
        train=data,
        validation=data,
        objective=Classification(),
        headline="accuracy",
        model="mlp",
        example_inputs=(torch.zeros(1, 4),),
    )
    setting = flop_counted_training.TrainingSetting(
        task=task,
        network=lambda share: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)),
        optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9),
        epochs=3,
        batch_size=5,
    )
    return replace(setting, **changes)


def test_a_training_costs_three_forward_passes_a_sample():
    setting = _setting()
    model = flop_counted_training.build(setting, 0)
    # 4 full batches of 5 samples an epoch, 4 * 6 + 6 * 2 multiply-accumulates a sample.
    assert flop_counted_training.fit_and_count(setting, model, epochs=3, seed=0) == 3 * 3 * 20 * 36
    assert flop_counted_training.dense_training_macs(setting) == 3 * 3 * 20 * 36
    short = _setting(steps_per_epoch=2)
    assert flop_counted_training.dense_training_macs(short) == 3 * 3 * 10 * 36


class _Narrowing:
    """Cuts the hidden layer from 6 to 3 before the second epoch."""

    order = SHAPES

    def __init__(self, model):
        self.model, self.calls, self.steps = model, 0, 0

    def parameter_groups(self):
        return []

    def penalty(self):
        return torch.zeros(())

    def step(self):
        self.steps += 1

    def finalize(self):
        return self.model

    def metrics(self):
        return {}

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass

    def reshape(self, state):
        pass

    def restructure(self, optimizer):
        self.calls += 1
        if self.calls == 2:
            first, _, second = self.model
            optimizer.state.clear()
            with torch.no_grad():
                first.weight.set_(first.weight[:3].clone())
                first.bias.set_(first.bias[:3].clone())
                second.weight.set_(second.weight[:, :3].clone())
            model = (first.weight, first.bias, second.weight)
            for parameter in model:
                parameter.grad = None
        return self.calls == 2


def test_each_epoch_costs_what_its_network_is():
    setting = _setting()
    model = flop_counted_training.build(setting, 0)
    method = _Narrowing(model)
    spent = flop_counted_training.fit_and_count(setting, model, epochs=3, seed=0, method=method)
    assert (method.calls, method.steps) == (3, 12)
    assert spent == 3 * 20 * (36 + 18 + 18)


def test_the_same_seed_gives_the_same_network_and_the_global_generator_is_left_alone():
    setting = _setting()
    state = torch.random.get_rng_state()
    models = []
    for seed in (0, 0, 1):
        model = flop_counted_training.build(setting, seed)
        flop_counted_training.fit_and_count(setting, model, epochs=2, seed=seed)
        models.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(models[0], models[1])
    assert not torch.equal(models[0], models[2])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_second_phase_goes_on_in_the_order_of_the_data():
    rows = []

    class Recording(Classification):
        def loss(self, model, batch, generator):
            rows.append(batch[0].clone())
            return super().loss(model, batch, generator)

    setting = _setting()
    setting = replace(setting, task=replace(setting.task, objective=Recording()))
    model = flop_counted_training.build(setting, 0)
    flop_counted_training.fit_and_count(setting, model, epochs=3, seed=0)
    flop_counted_training.fit_and_count(setting, model, epochs=1, seed=0, first_epoch=2)
    assert len(rows) == 16
    assert all(torch.equal(a, b) for a, b in zip(rows[8:12], rows[12:], strict=True))


def test_the_score_is_the_headline_of_all_validation_samples():
    setting = _setting()
    model = flop_counted_training.build(setting, 0)
    inputs, labels = setting.task.validation.gather(torch.arange(22))
    hits = (model(inputs).argmax(1) == labels).double().mean().item()
    assert flop_counted_training.score(setting, model) == pytest.approx(hits)
    assert model.training


def test_gradients_are_clipped_without_those_of_a_method():
    setting = _setting(clip_norm=1e-9, optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1))
    model = flop_counted_training.build(setting, 0)
    before = [p.detach().clone() for p in model.parameters()]
    flop_counted_training.fit_and_count(setting, model, epochs=1, seed=0)
    for old, new in zip(before, model.parameters(), strict=True):
        torch.testing.assert_close(new.detach(), old, atol=1e-7, rtol=0)
