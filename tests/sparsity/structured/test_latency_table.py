"""Budgets in measured time, by a table that interpolates."""

import pytest
import torch
from torch import nn

from latewood.core.modes import evaluated
from latewood.errors import RequestError
from latewood.sparsity.structured import StructuredSparsification, latency_measurement
from latewood.sparsity.structured.latency_table import Surface


def test_a_surface_is_linear_between_its_marks_and_never_falls():
    values = torch.tensor([[1.0, 3.0], [2.0, 2.5], [1.5, 7.0]], dtype=torch.float64)
    surface = Surface.rising(((1.0, 2.0, 4.0), (1.0, 5.0)), values)
    assert surface.at(1, 1) == 1 and surface.at(2, 1) == 2 and surface.at(4, 5) == 7
    assert surface.at(1.5, 1) == 1.5 and surface.at(1, 3) == 2
    assert surface.at(4, 1) == 2, "noise made it look faster"
    assert surface.at(2, 5) == 3
    assert surface.at(3, 3) == pytest.approx((2 + 3 + 2 + 7) / 4)
    assert surface.at(9, 9) == 7 and surface.at(0, 0) == 1
    assert Surface((), torch.tensor(2.5)).at() == 2.5
    assert Surface(((1.0, 1.0, 2.0),), torch.tensor([3.0, 4.0, 5.0])).at(1) == 4


@pytest.fixture
def steady(monkeypatch):
    """A clock that nothing else on the machine disturbs: values of a module, and its call."""

    def milliseconds(module, calls):
        assert calls, "a layer that the model runs"
        return 1e-3 * sum(parameter.numel() for parameter in module.parameters()) + 0.01

    monkeypatch.setattr(latency_measurement, "_milliseconds", milliseconds)


@pytest.mark.parametrize("name", ["convnet", "resnet20", "lstm"])
def test_a_network_meets_a_budget_in_milliseconds(runs, name, steady):
    spec = runs(name).method._structure.spec
    groups, blocks = len(spec.groups), len(spec.blocks)
    probe = runs(name, budget={"latency": 1.0}).method.budget
    assert probe.full > 0 and probe.limit == probe.full
    least = probe.cost.at([1] * groups, [False] * blocks)
    assert least < probe.full
    run = runs(name, epochs=6, budget={"latency": (1 + 2 * least / probe.full) / 3})
    budget = run.method.budget
    for _ in range(6):
        run.epoch()
        structure = run.method._structure
        assert budget.cost.at(structure.widths, structure.blocks.tolist()) <= budget.limit
    full = probe.parameters.at([group.width for group in spec.groups], [True] * blocks)
    assert run.method.metrics()["budget/used"] <= 1
    assert run.method.metrics()["parameters"] < full
    with evaluated(run.model):
        run.method.finalize()(*run.inputs)


def test_a_measured_table_has_times_and_a_resumed_run_keeps_it(runs):
    one = runs("convnet", budget={"latency": 1.0})
    assert one.method.budget.full > 0
    one.method.restructure(one.optimizer)
    state = one.method.state_dict()
    two = runs("convnet", budget={"latency": 1.0})
    two.method.reshape(state)
    two.method.load_state_dict(state)
    assert two.method.budget.limit == one.method.budget.limit
    assert two.method.budget.cost.at([3, 4, 5], []) == one.method.budget.cost.at([3, 4, 5], [])


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        ({"latency": 2.0}, "milliseconds are called latency_ms"),
        ({"latency_ms": 1e-9}, "one channel in each group"),
        ({"latency": 1e-9}, "one channel in each group"),
    ],
)
def test_latencies_that_cannot_be_are_refused(runs, budget, words):
    with pytest.raises(RequestError, match=words):
        runs("convnet", budget=budget)


class TwiceAndInside(nn.Module):
    """A linear layer that runs twice, and an LSTM, which cannot run on a part of its input."""

    def __init__(self):
        super().__init__()
        self.first, self.twice = nn.Linear(4, 8), nn.Linear(8, 8)
        self.lstm, self.last = nn.LSTM(8, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, inputs):
        hidden = self.twice(torch.relu(self.twice(torch.relu(self.first(inputs)))))
        return self.last(self.lstm(torch.relu(hidden))[0])


def test_a_layer_counts_as_often_as_it_runs_and_the_rest_is_between(monkeypatch):
    def least_times(calls, device, **_):
        # A millisecond a call of a layer, and ten for the whole.
        return {name: 1e4 if isinstance(call.func, TwiceAndInside) else 1e3
                for name, call in calls.items()}  # fmt: skip

    monkeypatch.setattr(latency_measurement, "least_times", least_times)
    model = TwiceAndInside()
    method = StructuredSparsification(
        model, torch.randn(1, 5, 4), budget={"latency": 1.0}, total_steps=9, steps_per_epoch=3
    )
    between, *layers = method.budget.table()
    assert [set(values.flatten().tolist()) for values in layers] == [{1.0}, {2.0}, {1.0}, {1.0}]
    assert set(between.tolist()) == {5.0}
    assert method.budget.full == 10.0
