"""Ways of writing a network that the tracer once took for something else, a small net each."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from latewood.core.coupling import slice_channels, trace_channels, verify_plan
from latewood.core.coupling.operation_table import OPERATIONS, OperationRule
from latewood.slim import slim
from latewood.sparsity import FixedMasks


class Net(nn.Module):
    """Layers, plain numbers, and a function of them."""

    def __init__(self, forward, **parts) -> None:
        super().__init__()
        self.run = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs):
        return self.run(self, *inputs)


def inputs(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def planned(model, *examples):
    plan = trace_channels(model, examples)
    assert verify_plan(model, plan, examples) <= 1e-12
    return plan


def free(plan):
    return [group.name for group in plan.free]


@pytest.mark.parametrize(
    "norm", [nn.GroupNorm(2, 8), nn.LayerNorm(8), nn.BatchNorm1d(8)], ids=lambda norm: str(norm)[:9]
)
def test_a_norm_of_what_nobody_followed_keeps_its_entries(norm):
    # An operation without a rule leaves data of fixed size behind.
    model = Net(
        lambda m, x: m.last(m.norm(torch.fft.fft(m.first(x)).real)),
        first=nn.Linear(4, 8), norm=norm, last=nn.Linear(8, 2),
    )  # fmt: skip
    assert free(planned(model.eval(), inputs(3, 4))) == []


def heads_beside_data(m, x):
    heads = m.value(x).view(len(x), m.heads, 4)
    data = torch.fft.fft(m.other(x)).real.reshape(len(x), m.heads, 4)
    return m.last(torch.cat([heads, data], 1).view(len(x), m.heads * 4 * 2))


def test_a_number_that_follows_heads_may_not_shape_other_data():
    parts = {name: nn.Linear(6, 8) for name in ("value", "other")}
    model = Net(heads_beside_data, **parts, last=nn.Linear(16, 2), heads=2)
    plan = planned(model, inputs(3, 6))
    assert free(plan) == []
    assert any("divides other channels" in barrier.reason for barrier in plan["value"].barriers)


def test_groups_that_share_a_row_are_tried_one_by_one():
    # Both twice would fit the counted number, one of them does not.
    def forward(m, x):
        y = torch.cat([m.a(x).view(len(x), m.heads, 3), m.b(x).view(len(x), -1, 3)], 1)
        return m.last(y.view(len(x), m.heads * 3 * 2))

    model = Net(forward, a=nn.Linear(4, 6), b=nn.Linear(4, 6), last=nn.Linear(12, 2), heads=2)
    plan = trace_channels(model, (inputs(3, 4),))
    assert verify_plan(model, plan, (inputs(3, 4),)) <= 1e-12
    assert "a" not in free(plan) and "b" not in free(plan)


@pytest.mark.parametrize(
    "middle",
    [
        lambda y, x: y.type_as(x[0]),
        lambda y, x: y.to(x[0]),
        lambda y, x: y.view(torch.tensor(len(y)), torch.div(torch.tensor(16), 2).long()),
        lambda y, x: y[: torch.tensor(len(y))],
    ],
)
def test_tensors_that_only_give_a_type_or_a_size_have_no_say(middle):
    model = Net(
        lambda m, x: m.last(F.relu(middle(m.first(x), x))), first=nn.Linear(4, 8),
        last=nn.Linear(8, 2),
    )  # fmt: skip
    plan = planned(model, inputs(3, 4))
    assert plan["first"].width == 8


@pytest.mark.parametrize(
    "middle",
    [
        lambda y, levels: (y * (torch.ones((), dtype=torch.int64) << levels)).floor(),
        lambda y, levels: y * (1 << levels) + (64 >> levels),
        lambda y, levels: torch.bitwise_left_shift(y.long(), levels).float(),
        lambda y, levels: torch.bitwise_right_shift(y.mul(64).long(), levels).float(),
        lambda y, levels: ((y.mul(64).long() & levels) ^ ~levels | 1).float(),
        lambda y, levels: torch.bitwise_not(torch.bitwise_xor(y.long(), levels)).float(),
        lambda y, levels: y * torch.as_tensor(levels, dtype=torch.float64),
        lambda y, levels: y.mul(64).long().__ilshift__(levels).__irshift__(1).float(),
        lambda y, levels: y.mul(64).long().__ixor__(levels).float(),
    ],
)
def test_integers_of_channels_are_shifted_and_joined_bit_by_bit(middle):
    model = Net(
        lambda m, x: m.last(middle(m.first(x), m.levels).to(x)), first=nn.Linear(4, 8),
        last=nn.Linear(8, 2),
    )  # fmt: skip
    model.register_buffer("levels", torch.tensor([0, 1, 2, 3, 4, 5, 6, 2]))
    plan = planned(model, inputs(3, 4))
    assert free(plan) == ["first"]
    assert ("levels", 0) in {(member.tensor, member.axis) for member in plan["first"].members}


def test_a_use_that_a_rule_does_not_know_is_a_barrier(monkeypatch):
    def fails(call):
        raise IndexError("of a use that nobody thought of")

    monkeypatch.setitem(OPERATIONS, "tanh", OperationRule(fails))
    model = Net(lambda m, x: m.last(torch.tanh(m.first(x))), first=nn.Linear(4, 8),
                last=nn.Linear(8, 2))  # fmt: skip
    plan = trace_channels(model, (inputs(3, 4),))
    assert [barrier.reason for barrier in plan["first"].barriers] == [
        "no rule for tanh in the model"
    ]


class Scan(nn.Module):
    """A state-space layer: a weight on the left, a state of zeros, one vector for all channels."""

    def __init__(self, width=6, inner=8, state=3, rank=2):
        super().__init__()
        self.inner, self.state, self.rank = inner, state, rank
        self.enter, self.leave = nn.Linear(width, inner), nn.Linear(inner, width)
        self.select = nn.Linear(inner, rank + 2 * state)
        self.step = nn.Linear(rank, inner)
        self.decay = nn.Parameter(torch.rand(inner, state))

    def forward(self, x):
        x = F.silu(self.enter(x))
        rank, b, c = self.select(x).split([self.rank, self.state, self.state], -1)
        step = F.softplus(self.step.weight @ rank.transpose(1, 2) + self.step.bias[:, None])
        decay = torch.exp(-torch.exp(self.decay)[None, :, None] * step[..., None])
        given = step[..., None] * b[:, None] * x.transpose(1, 2)[..., None]
        state = torch.zeros(len(x), self.inner, self.state)
        outputs = []
        for position in range(x.shape[1]):
            state = decay[:, :, position] * state + given[:, :, position]
            outputs.append((state.to(c.dtype) @ c[:, position, :, None])[..., 0])
        return self.leave(torch.stack(outputs, 1))


def test_a_scan_follows_its_inner_channels_and_the_rank_of_its_steps():
    model = Scan()
    plan = trace_channels(model, (inputs(2, 5, 6),))
    inner = plan["enter"]
    assert not inner.barriers and inner.width == 8
    assert {member.tensor for member in inner.members} >= {"decay", "step.weight", "leave.weight"}
    assert [number.attribute for number in inner.resized] == ["inner"]
    assert "fixed" in {barrier.kind for barrier in plan["select#2"].barriers}
    slice_channels(model, plan, {"enter": [0, 3, 5], "select": [1]})
    assert model(inputs(2, 5, 6)).shape == (2, 5, 6)


class LetteredAttention(nn.Module):
    """Attention whose weights have a dimension for the heads and one for their size."""

    def __init__(self, width=8, heads=4, size=3):
        super().__init__()
        self.q, self.k, self.v = (nn.Parameter(torch.randn(width, heads, size)) for _ in range(3))
        self.o = nn.Parameter(torch.randn(width, heads, size))
        self.bias = nn.Parameter(torch.randn(heads, size))
        self.head = nn.Linear(width, 2)

    def forward(self, x):
        q, k, v = (torch.einsum("ibh,hnd->ibnd", x, w) for w in (self.q, self.k, self.v))
        scores = torch.einsum("ibnd,jbnd->bnij", q + self.bias, k).softmax(-1)
        mixed = torch.einsum("bnij,jbnd->ibnd", scores, v)
        return self.head(x + torch.einsum("ibnd,hnd->ibh", mixed, self.o))


def test_of_a_weight_with_two_dimensions_of_outputs_the_first_is_followed():
    plan = planned(LetteredAttention(), inputs(5, 2, 8))
    (group,) = [group for group in plan.free if group.width == 4]
    members = {(member.tensor, member.axis) for member in group.members}
    assert members == {("q", 1), ("k", 1), ("v", 1), ("o", 1), ("bias", 0)}
    assert plan.owner("q", 2)[0].barriers[0].kind == "fixed"


def test_a_mask_on_a_tied_weight_is_followed_and_folded_in_all_its_uses():
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.Linear(6, 2)).eval()
    model[2].weight = model[0].weight
    mask = torch.ones(6, 6, dtype=torch.bool)
    mask[2, 3] = False
    FixedMasks(model, {"0.weight": mask})
    plan = trace_channels(model, (inputs(3, 6),))
    assert {barrier.kind for group in plan for barrier in group.barriers} == {"input", "output"}
    smaller = slim(model, (inputs(3, 6),))
    assert smaller[2].weight is smaller[0].weight
    assert not any(hasattr(layer, "parametrizations") for layer in smaller)
