"""Widening a group of one channel that owns several positions: blocks are told by the code."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from latewood.core.coupling import slice_channels, trace_channels, verify_plan, widen_channels
from latewood.errors import RequestError


class Model(nn.Module):
    def __init__(self, forward, **layers) -> None:
        super().__init__()
        self.run = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.run(self, x)


def linear(inputs, outputs):
    return nn.Linear(inputs, outputs)


def gated(m, x):
    gate, up = m.up(x).chunk(2, dim=-1)
    return m.down(F.silu(gate) * up)


def one_head(m, x):
    q, k, v = (part.view(*x.shape[:2], -1, 4).transpose(1, 2) for part in m.qkv(x).chunk(3, dim=-1))
    return m.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def one_head_by_products(m, x):
    q, k, v = (part.unflatten(-1, (-1, 4)).transpose(1, 2) for part in m.qkv(x).chunk(3, dim=-1))
    return m.out(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2))


def one_head_by_views(m, x):
    q, k, v = m.qkv(x).view(*x.shape[:2], 3, -1, 4).permute(2, 0, 3, 1, 4).unbind(0)
    return m.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


# By name: the network, the shape of its input, the group, and where its makers' blocks begin.
NETWORKS = {
    "lstm": (
        lambda: Model(lambda m, x: m.head(m.rnn(x)[0]), rnn=nn.LSTM(3, 1, 2), head=linear(1, 2)),
        (5, 2, 3), "rnn", (0, 1, 2, 3),
    ),
    "gru cell": (
        lambda: Model(lambda m, x: m.head(m.cell(x)), cell=nn.GRUCell(3, 1), head=linear(1, 2)),
        (2, 3), "cell", (0, 1, 2),
    ),
    "glu": (
        lambda: Model(lambda m, x: m.b(F.glu(m.a(x))), a=linear(3, 2), b=linear(1, 2)),
        (2, 3), "a", (0, 1),
    ),
    "gated": (
        lambda: Model(gated, up=linear(3, 2), down=linear(1, 2)), (2, 3), "up", (0, 1),
    ),
    "group norm": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(1, 4), nn.Conv2d(4, 2, 1)),
        (2, 3, 5, 5), "0", (0,),
    ),
    "one head": (
        lambda: Model(one_head, qkv=linear(3, 12), out=linear(4, 2)),
        (2, 5, 3), "qkv", (0, 4, 8),
    ),
    "one head by products": (
        lambda: Model(one_head_by_products, qkv=linear(3, 12), out=linear(4, 2)),
        (2, 5, 3), "qkv", (0, 4, 8),
    ),
    "one head by views": (
        lambda: Model(one_head_by_views, qkv=linear(3, 12), out=linear(4, 2)),
        (2, 5, 3), "qkv", (0, 4, 8),
    ),
    "pixel shuffle": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.PixelShuffle(2), nn.Conv2d(1, 2, 1)),
        (2, 3, 5, 5), "0", (0,),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_a_single_channel_is_widened_where_its_blocks_are_told(name):
    build, shape, group, blocks = NETWORKS[name]
    torch.manual_seed(0)
    model, inputs = build().double(), torch.randn(shape, dtype=torch.double)
    exact = model(inputs)
    plan = trace_channels(model, inputs)
    assert plan[group].width == 1
    assert plan[group].having("producer")[0].blocks == blocks
    wider = widen_channels(model, plan, {group: [0, 0]})
    again = trace_channels(model, inputs)
    expected = {(m.tensor, m.axis): m.indices.tolist() for m in again[group].members}
    assert {(m.tensor, m.axis): m.indices.tolist() for m in wider[group].members} == expected
    assert verify_plan(model, again, inputs) <= 1e-12
    # Copies that nothing reads leave the function as it was, wherever they lie.
    twin = copy.deepcopy(model)
    for member in wider[group].having("consumer"):
        with torch.no_grad():
            new = member.indices[1:].flatten()
            twin.get_parameter(member.tensor).index_fill_(member.axis, new, 0)
    assert torch.allclose(twin(inputs), exact, atol=1e-14, rtol=0)
    narrow = slice_channels(model, wider, {group: [1]})
    widen_channels(model, narrow, {group: [0]})
    assert trace_channels(model, inputs)[group].width == 2


def counted_heads(m, x):
    q, k, v = (
        part.view(*x.shape[:2], m.heads, 4).transpose(1, 2) for part in m.qkv(x).chunk(3, dim=-1)
    )
    return m.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def torch_attention(m, x):
    h = m.stem(x)
    return m.head(m.attention(h, h, h)[0])


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Sequential(nn.Conv2d(3, 1, 1), nn.Flatten(), linear(25, 2)), (2, 3, 5, 5)),
        (
            nn.Sequential(nn.Conv2d(3, 2, 1), nn.ChannelShuffle(2), nn.Conv2d(2, 2, 1)),
            (2, 3, 5, 5),
        ),
        (Model(counted_heads, heads=1, qkv=linear(3, 12), out=linear(4, 2)), (2, 5, 3)),
        (
            Model(
                torch_attention,
                stem=linear(3, 4),
                attention=nn.MultiheadAttention(4, 1),
                head=linear(4, 2),
            ),
            (2, 5, 3),
        ),
        (
            Model(
                lambda m, x: m.b(torch.cat([y := m.a(x), y.relu()], 1)),
                a=nn.Conv2d(3, 1, 1),
                b=nn.Conv2d(2, 1, 1),
            ),
            (2, 3, 5, 5),
        ),
        (
            Model(
                lambda m, x: m.b(F.glu(torch.stack(m.a(x).chunk(2, 1), 2).flatten(1, 2), 1)),
                a=nn.Conv2d(3, 2, 1),
                b=nn.Conv2d(1, 1, 1),
            ),
            (2, 3, 5, 5),
        ),
    ],
)
def test_where_nothing_tells_a_single_channel_is_refused(model, shape):
    plan = trace_channels(model, torch.randn(shape))
    single = [g for g in plan.free if g.width == 1 and any(m.multiplicity > 1 for m in g.members)]
    assert single
    for group in single:
        with pytest.raises(RequestError, match="nothing tells where those of another go"):
            widen_channels(model, plan, {group.name: [0]})
