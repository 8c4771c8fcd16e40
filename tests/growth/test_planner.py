"""The planner: on a machine whose costs are known, what it predicts and what it chooses."""

import math

import pytest
import torch
from torch import nn

from latewood.errors import RequestError
from latewood.growth import Growth, phased, plan_schedule
from latewood.growth.step_costs import measure_steps

EXAMPLE = torch.zeros(1, 8)


def net():
    return nn.Sequential(
        nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)
    )


class Machine:
    """A machine that computes with vectors of 16 channels, whole ones only."""

    def __init__(self):
        self.now = 0.0

    def seconds(self, widths):
        first, second = (16 * math.ceil(width / 16) for width in widths)
        return 1e-3 + 1e-6 * (8 * first + first * second + second * 4)

    def step(self, model, optimizer):
        self.now += self.seconds([model[0].out_features, model[2].out_features])

    def options(self):
        return {"train_step": self.step, "clock": lambda: self.now, "seconds": 0.01}


def test_steps_take_what_the_machine_takes():
    machine = Machine()
    candidates = [{"0": 16, "2": 16}, {"0": 20, "2": 34}, {"0": 64, "2": 64}]
    costs = measure_steps(net(), EXAMPLE, candidates, **machine.options())
    assert [cost.seconds for cost in costs] == pytest.approx(
        [machine.seconds(widths.values()) for widths in candidates], rel=1e-6
    )
    assert measure_steps(net(), EXAMPLE, candidates[:2], seconds=0.01)[1].widening_seconds > 0
    assert costs[1].macs == 8 * 20 + 20 * 34 + 34 * 4
    assert [cost.widths for cost in costs] == candidates


def test_the_choice_is_aligned_faster_and_costs_as_much():
    machine = Machine()
    choice = plan_schedule(
        net(), EXAMPLE, end=4.0, epochs=60, steps_per_epoch=1000, **machine.options()
    )
    chosen, paper = choice.chosen, choice.reference
    assert abs(chosen.macs / paper.macs - 1) <= 0.02
    assert chosen.seconds < 0.9 * paper.seconds < choice.fixed.seconds
    assert sum(chosen.epochs) == 60 and min(chosen.epochs) >= 1
    for widths in chosen.widths.values():
        assert all(width % 16 == 0 for width in widths) and widths == sorted(widths)
        assert (widths[0], widths[-1]) == (16, 64)
    # What the machine would take for it, step by step.
    for plan in (chosen, paper):
        taken = sum(
            1000 * epochs * machine.seconds(cost.widths.values())
            for epochs, cost in zip(plan.epochs, plan.costs, strict=True)
        )
        events = sum(cost.widening_seconds for cost in plan.costs)
        assert plan.seconds == pytest.approx(taken + events, rel=1e-6)


def test_a_chosen_schedule_is_one_that_growth_takes():
    model = net()
    choice = plan_schedule(
        model, EXAMPLE, end=3.0, epochs=30, steps_per_epoch=10, phases=3, **Machine().options()
    )
    method = Growth(
        model, EXAMPLE, schedule=choice.chosen.section(), total_steps=300, steps_per_epoch=10
    )
    assert method.widths == choice.chosen.widths
    assert [cost.macs for cost in method.costs] == [cost.macs for cost in choice.chosen.costs]
    assert len(choice.chosen.epochs) <= 3 and model[0].out_features == 16


def test_another_reference_can_be_compared_with():
    reference = phased(end={"0": 48}, phases=2, epochs=[10, 10])
    choice = plan_schedule(
        net(), EXAMPLE, epochs=20, steps_per_epoch=10, reference=reference, **Machine().options()
    )
    assert choice.reference.widths == {"0": [16, 48]}
    assert choice.reference.epochs == [10, 10]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs: got 0"),
        ({"steps_per_epoch": 2.5}, "steps_per_epoch: got 2.5"),
        ({"phases": 1}, "phases: got 1; expected at least 2"),
        ({"align": 3}, "align: got 3; expected an even number"),
        ({"tolerance": 0.0}, "tolerance: got 0.0"),
        ({"tolerance": 1e-9}, "tolerance: got 1e-09; expected more, or more than 40 epochs"),
        ({"end": 1.0}, r"schedule\.end: got 1.0"),
        ({"exclude": ["x"]}, "exclude: got 'x'"),
        ({"seconds": 0.0}, "seconds: got 0.0"),
    ],
)
def test_what_cannot_be_planned_is_refused_by_name(options, message):
    given = {"end": 4.0, "epochs": 40, "steps_per_epoch": 7} | Machine().options() | options
    with pytest.raises(RequestError, match=message):
        plan_schedule(net(), EXAMPLE, **given)


def test_real_steps_are_measured_and_leave_the_model_alone():
    model = net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    choice = plan_schedule(model, EXAMPLE, end=2.0, epochs=60, steps_per_epoch=5, seconds=0.05)
    assert all(cost.seconds > 0 for cost in choice.measured)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
