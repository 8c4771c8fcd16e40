"""Growing and pruning in a loop of one's own: budget, shapes, optimizer, memory."""

import torch
from torch import nn
from torch.nn import functional as F

from latewood.core import macs, parameter_groups
from latewood.sparsity.structured import StructuredSparsification

INPUTS = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(16) % 4


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 4),
    )  # fmt: skip


def train(model, method, optimizer, epochs):
    for _ in range(epochs):
        method.restructure(optimizer)
        for _ in range(method.steps_per_epoch):
            loss = F.cross_entropy(model(INPUTS), LABELS) + method.penalty()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            method.step()
        yield method.metrics()


def largest(overshoot, **options):
    """What a run of the small network costs at most before its freeze and at its end."""
    model = net()
    method = StructuredSparsification(
        model, INPUTS[:1], budget={"macs": 0.3}, total_steps=80, steps_per_epoch=4,
        growth_time=0.01, freeze=0.5, overshoot=overshoot, **options,
    )  # fmt: skip
    optimizer = torch.optim.SGD(parameter_groups(model, [method]), lr=0.05, momentum=0.9)
    used = [row["budget/used"] for row in train(model, method, optimizer, 20)]
    return max(used[:10]), max(used[10:])


def test_before_the_freeze_it_grows_to_so_many_budgets_and_is_pruned_then():
    before, after = largest(1.0)
    assert 0.9 < before <= 1 and 0.9 < after <= 1
    before, after = largest(2.0)
    assert 1.5 < before <= 2 and 0.9 < after <= 1
    before, after = largest(100.0)
    assert 2 < before <= 1 / 0.3 + 1e-9 and 0.9 < after <= 1


def test_without_a_freeze_it_stays_within_the_budget():
    assert StructuredSparsification(
        net(), INPUTS[:1], budget={"macs": 0.3}, total_steps=8, steps_per_epoch=4, freeze=1.0
    ).settings.growth.overshoot == 1.0  # fmt: skip


def test_a_network_grows_from_a_seed_and_ends_within_its_budget():
    model = net()
    method = StructuredSparsification(
        model, INPUTS[:1], budget={"macs": 0.3}, total_steps=80, steps_per_epoch=4
    )
    optimizer = torch.optim.SGD(parameter_groups(model, [method]), lr=0.05, momentum=0.9)
    rows = list(train(model, method, optimizer, 20))
    assert rows[0]["kept/0"] == rows[0]["kept/3"] == 1
    assert rows[0]["penalty_weight"] < 0
    assert max(row["kept/3"] for row in rows[1:7]) > 1
    assert all(row["budget/used"] <= 1 for row in rows[method.freeze_epoch :])
    assert rows[-1]["budget/used"] >= 0.95
    assert rows[-1]["undecided"] == 0
    slim = method.finalize()
    assert type(slim[3]) is nn.Conv2d and "parametrizations" not in str(slim)
    assert macs(slim, (INPUTS[:1],)) == rows[-1]["macs"] <= 0.3 * macs(net(), (INPUTS[:1],))
    assert sum(p.numel() for p in slim.parameters()) == rows[-1]["parameters"]
