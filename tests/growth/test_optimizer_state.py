from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from latewood.core import StateRule, register_state_rule, state_rule
from latewood.errors import RequestError
from latewood.growth.optimizer_state import divide_state, fill_state
from latewood.optim import CSGD, AdaBound, AMSBound, AvaGrad, AvaGradW, DelayedAdam

ADAM = {"lr": 1e-2, "betas": (0.9, 0.999)}


def constant_gradient_steps(count, *, filled):
    """Steps of a new entry, in units of the rate, under the old entries' count of steps."""
    weight = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = torch.optim.Adam([weight], lr=1.0, eps=0.0)
    optimizer.state[weight] = {
        "step": torch.tensor(float(count)),
        "exp_avg": torch.tensor([1.0, 0.0], dtype=torch.float64),
        "exp_avg_sq": torch.tensor([1.0, 0.0], dtype=torch.float64),
    }
    if filled:
        fill_state([optimizer], weight, {0: torch.tensor([1])})
    lengths = []
    for _ in range(60):
        before = weight.detach().clone()
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        lengths.append(float((before - weight.detach())[1]))
    return lengths


def test_filled_second_moments_let_no_entry_step_further_than_the_rate():
    """O9."""
    assert max(constant_gradient_steps(10**4, filled=False)) == pytest.approx(6.568, abs=2e-3)
    lengths = constant_gradient_steps(10**4, filled=True)
    assert lengths[:3] == pytest.approx([0.100, 0.190, 0.271], abs=1e-3)
    assert max(lengths) <= 1.0 + 1e-4 and lengths[-1] > 0.99


class Compensated(nn.Module):
    """A weight with a factor behind it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False)
        self.double()
        self.factor = 1.0

    def forward(self, x):
        return self.last(torch.tanh(self.first(x) * self.factor))


@pytest.mark.parametrize("decay", [0.0, 0.01])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_a_rescaled_weight_with_its_state_and_rates_goes_the_same_way(kind, decay):
    """O5: rule 3.5(3) on top of the division shows that the division is right."""
    model, c = Compensated(), 0.7
    options = {"lr": 0.1, "momentum": 0.9} if kind is torch.optim.SGD else dict(ADAM)
    twin = copy.deepcopy(model)
    runs = []
    for network, rescaled in ((model, True), (twin, False)):
        groups = [{"params": [network.first.weight]}, {"params": [network.last.weight]}]
        optimizer = kind(groups, weight_decay=decay, **options)
        generator = torch.Generator().manual_seed(1)
        losses = []
        for step in range(25):
            if rescaled and step == 10:
                with torch.no_grad():
                    network.first.weight.mul_(c)
                network.factor = 1 / c
                divide_state([optimizer], network.first.weight, c)
                group = optimizer.param_groups[0]
                if kind is torch.optim.SGD:
                    group["lr"], group["weight_decay"] = group["lr"] * c**2, decay / c**2
                else:
                    group["lr"], group["eps"] = group["lr"] * c, group["eps"] / c
                    power = 2 if kind is torch.optim.Adam else 1
                    group["weight_decay"] = decay / c**power
            x = torch.randn(8, 3, dtype=torch.float64, generator=generator)
            optimizer.zero_grad()
            loss = F.cross_entropy(network(x), torch.arange(8) % 2)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        runs.append(losses)
    assert runs[0] == pytest.approx(runs[1], rel=1e-13, abs=0)


@pytest.mark.parametrize(
    "kind", [CSGD, AdaBound, AMSBound, AvaGrad, AvaGradW, DelayedAdam, torch.optim.Muon]
)
def test_every_optimizer_of_the_package_and_muon_are_known(kind):
    weight = nn.Parameter(torch.ones(3, 2))
    options = {"momentum": 0.9} if kind in (CSGD, torch.optim.Muon) else {}
    optimizer = kind([weight], **options)
    weight.grad = torch.full_like(weight, 2.0)
    for _ in range(3):
        optimizer.step()
    rule = state_rule(optimizer)
    before = {key: value.clone() for key, value in optimizer.state[weight].items()}
    assert {key for key, value in before.items() if value.shape == weight.shape} <= set(rule.powers)
    divide_state([optimizer], weight, 0.5)
    for key, power in rule.powers.items():
        if key in before:
            assert torch.allclose(optimizer.state[weight][key], before[key] * 2.0**power)


def test_a_rule_of_a_users_own_is_found_for_subclasses():
    class Mine(torch.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {"lr": 1.0})

    class Finer(Mine):
        pass

    optimizer = Finer([nn.Parameter(torch.ones(2))])
    with pytest.raises(RequestError, match="state of Finer means"):
        state_rule(optimizer)
    register_state_rule(Mine, StateRule({"velocity": 1}))
    assert state_rule(optimizer).powers == {"velocity": 1}
