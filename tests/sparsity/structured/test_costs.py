"""What a network costs: counted as the network that is really there, with absent blocks too."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from latewood.core import macs
from latewood.core.coupling import verify
from latewood.errors import RequestError
from latewood.sparsity.structured import (
    StructuredSparsification,
    latency_measurement,
    structure_spec,
)


class Attention(nn.Module):
    """Attention with its heads as a group, a fused projection, and a product with a raw weight."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.norm = heads, nn.LayerNorm(width)
        self.into = nn.Linear(width, 6 * heads)
        self.out = nn.Linear(2 * heads, width)

    def forward(self, x):
        split = self.into(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return x + self.out(F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2))


class Mixing(nn.Module):
    """A product of activations without any weight, in a block that has no group of its own."""

    def __init__(self, width):
        super().__init__()
        self.norm, self.value = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x):
        hidden = self.norm(x)
        return x + self.value(torch.softmax(hidden @ hidden.mT, -1) @ hidden)


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(5, 8), Attention(8, 4), Mixing(8), Attention(8, 3), nn.Linear(8, 3)
    )


TOKENS = torch.randn(1, 6, 5, generator=torch.Generator().manual_seed(0))


def build(model, inputs, budget=None, **options):
    return StructuredSparsification(
        model, inputs, budget=budget or {"macs": 0.9}, total_steps=8, steps_per_epoch=2, **options
    )


@pytest.mark.parametrize("there", [(1, 1, 1), (0, 1, 1), (1, 0, 1), (0, 0, 1), (0, 0, 0)])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_count_is_that_of_the_network_that_is_there(there, seed):
    model = net()
    method = build(model, TOKENS)
    structure, cost = method._structure, method._meter._macs
    assert [block.name for block in structure.spec.blocks] == ["1", "2", "3"]
    assert cost.at(structure.widths, [True] * 3) == macs(net(), (TOKENS,))
    noise = torch.Generator().manual_seed(seed)
    present = [torch.rand(len(part), generator=noise) < 0.5 for part in structure.present]
    for part in present:
        part[0] = True
    everywhere, blocks = torch.ones(3, dtype=torch.bool), torch.tensor(there).bool()
    structure.change_to(present, everywhere, None)
    structure.change_to(present, blocks, None)
    assert cost.at(structure.widths, blocks.tolist()) == macs(model, (TOKENS,))


def test_a_count_runs_the_model_a_fixed_number_of_times(monkeypatch):
    """However many groups and candidates there are: the rest runs alone."""
    # The check of small models runs each of them some times more.
    monkeypatch.setattr(structure_spec, "verify_small_plan", lambda *_, **__: None)

    def calls(layers):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(5, 8), *(Attention(8, 4) for _ in range(layers)), nn.Linear(8, 3)
        )
        count = 0

        def note(*_):
            nonlocal count
            count += 1

        handle = model[-1].register_forward_hook(note)
        build(model, TOKENS)
        handle.remove()
        return count

    assert calls(2) == calls(8)
    # Apart from the verification of small models.
    monkeypatch.setattr(verify, "VERIFIED_SIZE", 0)
    assert calls(2) == calls(8) <= 8


@pytest.fixture
def steady(monkeypatch):
    """A clock that nothing else on the machine disturbs: what is between layers counts as well."""

    def milliseconds(module, calls):
        assert calls, "a layer that the model runs"
        values = sum(parameter.numel() for parameter in module.parameters())
        return 1e-3 * values * (1.5 if any(module.children()) else 1.0) + 0.01

    monkeypatch.setattr(latency_measurement, "_milliseconds", milliseconds)


def test_what_is_inside_an_absent_block_takes_no_time(steady):
    method = build(net(), TOKENS, {"latency": 0.9})
    cost, structure = method.budget.cost, method._structure
    inside = [n for n, block in enumerate(structure.spec.block_of) if block is not None]
    narrow = [1 if n in inside else width for n, width in enumerate(structure.widths)]
    absent = [False] * 3
    assert inside and cost.at(structure.widths, absent) == cost.at(narrow, absent)
    assert cost.at(structure.widths, [True] * 3) > cost.at(narrow, [True] * 3)


@pytest.mark.parametrize("share", [0.35, 0.5, 0.7])
def test_a_latency_holds_where_blocks_are_absent(steady, share):
    method = build(net(), TOKENS, {"latency": share})
    structure, budget = method._structure, method.budget
    with torch.no_grad():
        structure.layer_gate.logits.copy_(torch.tensor([3.0, -3.0, -3.0]))
    method.finalize()
    assert budget.cost.at(structure.widths, structure.blocks.tolist()) <= budget.limit
    assert method.metrics()["budget/used"] <= 1


@pytest.mark.parametrize("kind", ["macs", "parameters"])
def test_a_budget_that_no_block_fits_is_refused_with_the_least_that_can_be_met(kind):
    free = build(net(), TOKENS, {kind: 1.0})
    groups = len(free._structure.spec.groups)
    narrowest = [
        free.budget.cost.at([1] * groups, [number == only for number in range(3)])
        for only in range(3)
    ]
    outside = free.budget.cost.at([1] * groups, [False] * 3)
    assert outside < min(narrowest)
    with pytest.raises(RequestError, match="one channel in each group and one block") as refused:
        build(net(), TOKENS, {kind: (outside + min(narrowest)) / 2})
    assert f"expected at least {min(narrowest):g}" in str(refused.value)
    with pytest.raises(RequestError) as refused:
        build(net(), TOKENS, {kind: outside / free.budget.full})
    # The share that it names is one that can be met.
    share = float(str(refused.value).rpartition("a share of ")[2].rstrip(")"))
    method = build(net(), TOKENS, {kind: share})
    method.finalize()
    assert bool(method._structure.blocks.any()) and method.metrics()["budget/used"] <= 1
