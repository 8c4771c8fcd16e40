"""Modules that an example does not reach: experts without tokens, layers that are left out."""

import pytest
import torch
from torch import nn

from latewood.core.coupling import (
    NORMALISED,
    can_widen,
    slice_channels,
    trace_channels,
    trace_head_sizes,
    verify_plan,
    widen_channels,
)
from latewood.slim import slim


class Expert(nn.Module):
    def __init__(self, width=6, inner=10):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down, self.inner = nn.Linear(width, inner), nn.Linear(inner, width), inner

    def forward(self, x):
        hidden = self.up(self.norm(x)).view(-1, self.inner).relu()
        return x + self.down(hidden)


class Mixture(nn.Module):
    """Each row to one expert, that of its number."""

    def __init__(self, experts=3):
        super().__init__()
        self.front, self.head = nn.Linear(4, 6), nn.Linear(6, 2)
        self.experts = nn.ModuleList(Expert() for _ in range(experts))
        self.norm = nn.LayerNorm(6)

    def forward(self, x, chosen):
        h = self.front(x)
        out = torch.zeros_like(h)
        for number, expert in enumerate(self.experts):
            rows = (chosen == number).nonzero().flatten()
            if len(rows):
                out = out.index_add(0, rows, expert(h[rows]))
        return self.head(self.norm(out))


def inputs(*numbers):
    generator = torch.Generator().manual_seed(0)
    chosen = torch.tensor(numbers)
    return torch.randn(len(numbers), 4, generator=generator), chosen


SOME, ALL = inputs(0, 1, 0, 1), inputs(0, 1, 2, 2)


def mixture():
    torch.manual_seed(0)
    model = Mixture().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.rand_like(parameter))
    return model


def in_double(example):
    return example[0].double(), example[1]


def test_an_expert_without_tokens_has_the_channels_of_the_others():
    plan = trace_channels(mixture(), in_double(SOME))
    full = trace_channels(mixture(), in_double(ALL))
    assert {(m.tensor, m.axis, m.role) for m in plan["front"].members} == {
        (m.tensor, m.axis, m.role) for m in full["front"].members
    }
    for name in ("experts.0.up", "experts.1.up", "experts.2.up"):
        assert {(m.tensor, m.axis, m.role) for m in plan[name].members} == {
            (m.tensor, m.axis, m.role) for m in full[name].members
        }
        assert [number.module for number in plan[name].resized] == [name.removesuffix(".up")]
    assert set(plan.layers) == set(full.layers)
    assert plan.layers["experts.2.up.weight"].activation == "relu"


def test_it_runs_when_tokens_reach_it_after_a_change():
    model = mixture()
    plan = trace_channels(model, in_double(SOME))
    smaller = slice_channels(model, plan, {"experts.0.up": range(4), "experts.2.up": range(3)})
    assert model(*in_double(ALL)).shape == (4, 2)
    assert [expert.inner for expert in model.experts] == [4, 10, 3]
    assert verify_plan(model, smaller, in_double(SOME)) <= 1e-12


def test_padding_a_stream_keeps_what_it_computes():
    model = mixture()
    plan = trace_channels(model, in_double(SOME))
    before = model(*in_double(ALL))
    wider = [group.name for group in plan if can_widen(group)]
    assert "front" in wider
    widen_channels(model, plan, dict.fromkeys(wider, 4), fill="pair", allow=NORMALISED)
    assert model.experts[2].norm.weight.shape == (10,)
    torch.testing.assert_close(model(*in_double(ALL)), before, rtol=0, atol=1e-12)


def test_slim_removes_only_what_no_expert_needs():
    model = mixture()
    with torch.no_grad():
        for number, dead in ((0, [1, 2]), (1, [3]), (2, [2])):
            for row in dead:
                model.experts[number].up.weight[row] = 0.0
                model.experts[number].up.bias[row] = 0.0
    small = slim(model, in_double(SOME))
    # What tokens may still reach stays.
    assert [expert.up.out_features for expert in small.experts] == [8, 9, 10]
    torch.testing.assert_close(small(*in_double(ALL)), model(*in_double(ALL)), rtol=0, atol=1e-12)


class Pyramid(nn.Module):
    """Layers of one shape that read different streams; the last is not called."""

    def __init__(self):
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(5, 5) for _ in range(3))
        self.layers = nn.ModuleList(nn.Linear(5, 2) for _ in range(3))

    def forward(self, x):
        total = 0
        for map_, layer in zip(self.maps[:2], self.layers, strict=False):
            x = map_(x).relu()
            total = total + layer(x)
        return total


def test_layers_that_read_different_streams_stand_for_nobody():
    plan = trace_channels(Pyramid(), torch.randn(2, 5))
    assert not any(
        member.tensor.startswith(("layers.2", "maps.2"))
        for group in plan
        for member in group.members
    )


class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.front = nn.Linear(8, 8)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(3)
        )

    def forward(self, x):
        x = self.front(x)
        for layer in self.layers[:2]:
            x = layer(x)
        return x


@pytest.mark.parametrize("trace", [trace_channels, trace_head_sizes])
def test_attention_that_is_left_out_keeps_the_plan_right(trace):
    model, x = Heads().eval(), torch.randn(1, 4, 8)
    plan = trace(model, x)
    names = {member.tensor for group in plan for member in group.members}
    assert "layers.2.linear1.weight" in names
    assert verify_plan(model, plan, x) <= 1e-12
    for group in plan:
        if group.queries:
            assert [barrier.reason for barrier in group.barriers] == [
                "the example does not reach layers.2"
            ]
