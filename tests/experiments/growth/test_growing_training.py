"""Training that grows: costs by hand, events that keep the function, rates from other samples."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from latewood.errors import RequestError
from latewood.experiments.flop_counted_training import TrainingSetting
from latewood.experiments.growth.growing_training import (
    Growing,
    GrowingTraining,
    best_rate,
    fractions_of,
    held_out,
    stable_then_falling,
    starts_of,
    train,
    train_branches,
    warmed_cosine,
)
from latewood.tasks import Classification, Task, TensorDataset


def setting(**changes) -> TrainingSetting:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(40, 4, generator=generator)
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

    def network(fraction: float) -> nn.Module:
        width = round(8 * fraction)
        return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 2))

    made = TrainingSetting(
        task=task,
        network=network,
        optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9),
        epochs=1,
        batch_size=5,
    )
    return replace(made, **changes)


DOUBLING = Growing((0.5, 1.0), (0.0, 0.25))


def test_a_growing_training_costs_what_its_networks_cost():
    # 6 w multiply-accumulates a sample, 5 samples, three forward passes; 2 steps at 4, 6 at 8.
    assert train(setting(), DOUBLING, steps=8, seed=0).macs == 3 * 5 * 6 * (2 * 4 + 6 * 8)
    assert train(setting(), Growing(), steps=8, seed=0).macs == 3 * 5 * 6 * 8 * 8


@pytest.mark.parametrize("init", ["pair", "net2net", "zero_out", "gradmax"])
def test_events_keep_the_loss_and_the_network_reaches_its_width(init):
    growing = replace(DOUBLING, init=init, fractions=(0.75, 1.0))
    training = GrowingTraining(setting(), growing, 8, 0)
    assert training.run(1.0, 0).jump < 1e-6
    assert training.model[0].out_features == 8 and training.model[2].in_features == 8


def test_random_channels_move_the_loss():
    assert train(setting(), replace(DOUBLING, init="random"), steps=8, seed=0).jump > 1e-3


def test_a_training_depends_on_its_seed_alone():
    first = train(setting(), DOUBLING, steps=8, seed=1)
    torch.manual_seed(99)
    again, other = (train(setting(), DOUBLING, steps=8, seed=seed) for seed in (1, 2))
    assert replace(first, seconds=0.0) == replace(again, seconds=0.0)
    assert other.loss != first.loss


def test_rates_by_stage_are_attached_only_where_they_are_asked_for():
    for rates, attached in (("none", False), ("constant", True), ("norm", True)):
        training = GrowingTraining(setting(), replace(DOUBLING, rates=rates), 8, 0)
        optimizer = training.optimizer(1.0)
        assert bool(optimizer._optimizer_step_pre_hooks) is attached
    fixed = GrowingTraining(setting(), Growing(), 8, 0)
    assert not fixed.optimizer(1.0)._optimizer_step_pre_hooks


def test_a_rate_is_a_factor_on_the_optimizers_own():
    optimizer = GrowingTraining(setting(), Growing(), 8, 0).optimizer(0.5)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(
        [0.05] * len(optimizer.param_groups)
    )


def test_the_best_rate_is_that_of_the_least_loss_on_samples_held_out():
    # With a rate of 0 nothing is learned, and with 1e20 the loss is not finite.
    chosen = best_rate(setting(), Growing(), (0.0, 1.0, 1e21), steps=20, seed=3, samples=10)
    assert chosen == 1.0


def test_held_out_samples_are_the_last_and_are_not_trained_on():
    task = setting().task
    tuned = held_out(task, 10)
    assert (len(tuned.train), len(tuned.validation)) == (30, 10)
    both = [part.gather(torch.arange(len(part)))[0] for part in (tuned.train, tuned.validation)]
    assert torch.equal(torch.cat(both), task.train.tensors[0])


def test_phases_grow_by_one_factor_and_last_in_proportion():
    assert fractions_of(0.25, 3) == pytest.approx((0.25, 0.5, 1.0))
    assert starts_of((0.25, 0.5, 1.0)) == pytest.approx((0.0, 1 / 7, 3 / 7))


def test_a_rate_rises_in_a_line_and_falls_along_a_cosine():
    rates = [warmed_cosine(step, 7, 2) for step in range(7)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.853553, 0.5, 0.146447, 0.0], abs=1e-6)


def test_a_branch_rises_stays_and_falls_in_a_line():
    rates = [stable_then_falling(step, 8, 2, 4) for step in range(8)]
    assert rates == [0.5, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25]
    assert stable_then_falling(0, 4, 0, 2) == 1.0


def test_branches_are_the_trainings_of_their_lengths():
    """Shared steps change nothing: neither the other branches nor what a length alone comes to."""
    adam = setting(optimizer=lambda groups: torch.optim.AdamW(groups, lr=0.01))
    chosen = {"falling": 0.25, "seed": 1, "rate_warmup": 2}
    fixed = Growing()
    together = train_branches(adam, fixed, lengths=[12, 4, 8, 8], **chosen)
    assert list(together) == [4, 8, 12]
    for length, result in together.items():
        alone = train_branches(adam, fixed, lengths=[length], **chosen)[length]
        assert replace(alone, seconds=0.0) == replace(result, seconds=0.0)
        assert result.macs == 3 * 5 * 6 * 8 * length and result.seconds > 0.0
    assert len({result.loss for result in together.values()}) == 3


def test_a_growing_network_has_one_length():
    grown = train_branches(setting(), DOUBLING, lengths=[8], falling=0.25, seed=0)[8]
    assert grown.macs == 3 * 5 * 6 * (2 * 4 + 6 * 8)
    with pytest.raises(RequestError, match="lengths"):
        train_branches(setting(), DOUBLING, lengths=[8, 12], falling=0.25, seed=0)
    with pytest.raises(RequestError, match="falling"):
        train_branches(setting(), Growing(), lengths=[8], falling=1.0, seed=0)
    with pytest.raises(RequestError, match="lengths"):
        train_branches(setting(), Growing(), lengths=[], falling=0.5, seed=0)


def test_rates_of_branches_are_chosen_with_the_schedule_of_branches():
    chosen = best_rate(
        setting(), Growing(), (0.0, 1.0, 1e21), steps=20, seed=3, samples=10, falling=0.2
    )
    assert chosen == 1.0


@pytest.mark.parametrize("starts", [(0.0,), (0.1, 0.5), (0.0, 0.0), (0.0, 1.0)])
def test_phases_that_do_not_fit_are_refused(starts):
    with pytest.raises(RequestError, match="starts"):
        Growing((0.5, 1.0), starts)


def test_a_training_too_short_for_its_phases_is_refused():
    with pytest.raises(RequestError, match="steps"):
        train(setting(), Growing((0.5, 0.75, 1.0), (0.0, 0.5, 0.6)), steps=4, seed=0)
