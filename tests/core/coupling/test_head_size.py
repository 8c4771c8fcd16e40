"""The size of attention's heads as channels, and the factor on the scores that goes with it."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from latewood.core.coupling import (
    Resized,
    scale_queries,
    slice_channels,
    trace_channels,
    trace_head_sizes,
    verify_plan,
    widen_channels,
)
from latewood.errors import RequestError, WorkError

HEADS, SIZE = 2, 4
WIDTH = HEADS * SIZE


def softmax_product(m, q, k, v, factor):
    return (q @ k.transpose(-2, -1) * factor).softmax(-1) @ v


# By name: how heads are mixed, and how the factor goes with their size.
MIXES = {
    "sdpa": (lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v), "size"),
    "sdpa, attribute": (
        lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v, scale=m.scaling),
        "fixed",
    ),
    "size of a tensor": (
        lambda m, q, k, v: softmax_product(m, q, k, v, 1 / math.sqrt(k.size(-1))),
        "size",
    ),
    "attribute in a tensor": (
        lambda m, q, k, v: (
            (q @ k.mT / torch.sqrt(torch.tensor(m.crumb, dtype=q.dtype))).softmax(-1) @ v
        ),
        "size",
    ),
    "both sides": (
        lambda m, q, k, v: softmax_product(m, q * m.crumb**-0.25, k / m.crumb**0.25, v, 1.0),
        "size",
    ),
    "literal": (lambda m, q, k, v: softmax_product(m, q, k, v, 0.5), "fixed"),
    "no factor": (lambda m, q, k, v: softmax_product(m, q, k, v, 1.0), "fixed"),
    "einsum": (
        lambda m, q, k, v: torch.einsum(
            "bhqk,bhkd->bhqd",
            (torch.einsum("bhqd,bhkd->bhqk", q, k) * q.shape[-1] ** -0.5).softmax(-1),
            v,
        ),
        "size",
    ),
    "one over the size": (lambda m, q, k, v: softmax_product(m, q, k, v, 1 / m.crumb), None),
}


class Attention(nn.Module):
    """Attention with numbers under names that nobody else uses."""

    def __init__(self, mix, kv_heads=HEADS):
        super().__init__()
        torch.manual_seed(0)
        self.mix = mix
        self.antlers, self.crumb, self.scaling = HEADS, SIZE, SIZE**-0.5
        self.moss = kv_heads
        self.stem, self.head = nn.Linear(3, 5), nn.Linear(5, 2)
        self.q = nn.Linear(5, WIDTH)
        self.k, self.v = nn.Linear(5, kv_heads * SIZE), nn.Linear(5, kv_heads * SIZE)
        self.out = nn.Linear(WIDTH, 5)

    def forward(self, x):
        h = self.stem(x)
        q = self.q(h).view(*h.shape[:-1], self.antlers, self.crumb).transpose(1, 2)
        k, v = (
            layer(h)
            .view(*h.shape[:-1], self.moss, self.crumb)
            .transpose(1, 2)
            .repeat_interleave(self.antlers // self.moss, 1)
            for layer in (self.k, self.v)
        )
        mixed = self.mix(self, q, k, v).transpose(1, 2).flatten(2)
        return self.head(h + self.out(mixed))


@pytest.fixture
def inputs():
    return 3 * torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", MIXES)
def test_how_the_factor_goes_with_the_size_is_measured(name, inputs):
    mix, kind = MIXES[name]
    model = Attention(mix)
    plan = trace_head_sizes(model, inputs)
    group = plan["q"]
    assert group.width == SIZE
    assert group.score_scale == kind
    if kind is None:
        assert "neither the size nor stays" in group.barriers[0].reason
        return
    assert not group.barriers
    assert {(part.tensor, part.columns) for part in group.queries} == {
        ("q.weight", (0, 1)),
        ("q.bias", (0, 1)),
    }
    assert verify_plan(model, plan, inputs) <= 1e-12
    assert Resized("", "crumb", 1) in group.resized


@pytest.mark.parametrize("name", ["sdpa", "literal", "both sides"])
@pytest.mark.parametrize("kv_heads", [HEADS, 1])
def test_larger_heads_keep_the_function(name, kv_heads, inputs):
    mix, kind = MIXES[name]
    model = Attention(mix, kv_heads).double()
    inputs = inputs.double()
    exact = model(inputs)
    plan = trace_head_sizes(model, inputs)
    wider = widen_channels(model, plan, {"q": [0, 0, 1]})
    # New entries of queries are zero, and columns that read new entries of values.
    group = wider["q"]
    for member in group.members:
        new = member.indices[SIZE:].flatten()
        if member.tensor.startswith("q.") or member.role == "consumer":
            with torch.no_grad():
                model.get_parameter(member.tensor).index_fill_(member.axis, new, 0)
    changed = (model(inputs) - exact).abs().max()
    assert (changed > 1e-3) == (kind == "size")
    if kind == "size":
        scale_queries(model, group, math.sqrt(7 / SIZE))
    assert torch.allclose(model(inputs), exact, atol=1e-14, rtol=0)
    assert model.crumb == 7
    narrow = slice_channels(model, wider, {"q": range(SIZE)})
    if kind == "size":
        scale_queries(model, narrow["q"], math.sqrt(SIZE / 7))
    assert torch.allclose(model(inputs), exact, atol=1e-14, rtol=0)


def test_a_size_that_goes_unnoticed_is_caught_by_the_check(inputs):
    model = Attention(MIXES["sdpa"][0])
    plan = trace_head_sizes(model, inputs)
    group = plan["q"]
    object.__setattr__(group, "score_scale", "fixed")
    with pytest.raises(WorkError, match="at fault: q"):
        verify_plan(model, plan, inputs)


def test_heads_stay_the_channels_of_the_usual_plan(inputs):
    model = Attention(MIXES["sdpa"][0])
    plan = trace_channels(model, inputs)
    assert plan["q"].width == HEADS
    assert plan["q"].score_scale is None
    assert {number.attribute for number in plan["q"].resized} == {"antlers", "moss"}
    assert verify_plan(model, plan, inputs) <= 1e-12
    with pytest.raises(RequestError, match="expected entries of queries and keys"):
        scale_queries(model, plan["q"], 2.0)


def mixed_by(function, **more):
    model = Attention(function)
    for name, value in more.items():
        setattr(model, name, value)
    return model


def test_queries_that_are_the_keys_cannot_be_scaled_alone(inputs):
    model = mixed_by(lambda m, q, k, v: F.scaled_dot_product_attention(q, q, v))
    (reason,) = {barrier.reason for barrier in trace_head_sizes(model, inputs)["q"].barriers}
    assert "no weights make the queries alone" in reason


def test_a_vector_added_to_the_queries_is_in_the_way(inputs):
    model = mixed_by(
        lambda m, q, k, v: F.scaled_dot_product_attention(q + m.shift, k, v),
        shift=nn.Parameter(torch.randn(SIZE)),
    )
    (reason,) = {barrier.reason for barrier in trace_head_sizes(model, inputs)["q"].barriers}
    assert "no weights make the queries alone" in reason


def test_a_norm_of_queries_is_a_barrier_of_its_kind(inputs):
    model = mixed_by(
        lambda m, q, k, v: F.scaled_dot_product_attention(m.norm(q), k, v, scale=0.5),
        norm=nn.RMSNorm(SIZE),
    )
    kinds = {barrier.kind for barrier in trace_head_sizes(model, inputs)["q"].barriers}
    assert kinds == {"normalised"}


def test_a_size_written_as_a_number_is_refused(inputs):
    class Literal(Attention):
        def forward(self, x):
            h = self.stem(x)
            q, k, v = (
                layer(h).view(2, 5, -1, 4).transpose(1, 2) for layer in (self.q, self.k, self.v)
            )
            mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            return self.head(self.out(mixed))

    plan = trace_head_sizes(Literal(None), inputs)
    assert "of which 4 is fixed" in plan["q"].barriers[0].reason
    with pytest.raises(RequestError, match="of which 4 is fixed"):
        widen_channels(Literal(None), plan, {"q": [0]})


class Rotary(Attention):
    """Halves of an entry's pair turn together."""

    def __init__(self):
        super().__init__(None)
        self.register_buffer("speeds", 0.1 ** torch.arange(SIZE // 2))

    def forward(self, x):
        h = self.stem(x)
        q, k, v = (
            layer(h).view(*h.shape[:-1], -1, self.crumb).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        angles = torch.arange(h.shape[1])[:, None].to(h.dtype) * self.speeds
        angles = torch.cat([angles, angles], -1)

        def turned(t):
            first, second = t[..., : t.shape[-1] // 2], t[..., t.shape[-1] // 2 :]
            return t * angles.cos() + torch.cat([-second, first], -1) * angles.sin()

        mixed = F.scaled_dot_product_attention(turned(q), turned(k), v)
        return self.head(self.out(mixed.transpose(1, 2).flatten(2)))


def test_rotary_pairs_stay_together(inputs):
    model = Rotary()
    plan = trace_head_sizes(model, inputs)
    assert plan["q"].width == SIZE // 2
    assert any(member.tensor == "speeds" for member in plan["q"].members)
    assert verify_plan(model, plan, inputs) <= 1e-12
    wider = widen_channels(model, plan, {"q": [1]})
    model(inputs)
    assert (model.crumb, len(model.speeds), wider["q"].width) == (6, 3, 3)


class TorchAttention(nn.Module):
    def __init__(self, **options):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Linear(3, WIDTH), nn.Linear(WIDTH, 2)
        self.other = nn.Linear(3, options.get("kdim", WIDTH))
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, **options)
        with torch.no_grad():
            for bias in (self.attention.in_proj_bias, self.attention.out_proj.bias):
                bias.normal_()

    def forward(self, x):
        h, other = self.stem(x), self.other(x)
        return self.head(h + self.attention(h, other, other, need_weights=False)[0])


OPTIONS = [{}, {"kdim": 5, "vdim": 5}, {"add_bias_kv": True}, {"add_zero_attn": True}]


@pytest.mark.parametrize("options", OPTIONS)
def test_heads_of_torch_go_with_channels_of_the_stream(options, inputs):
    model = TorchAttention(**options)
    plan = trace_channels(model, inputs)
    group = plan["stem"]
    assert (group.width, group.barriers) == (HEADS, ())
    assert verify_plan(model, plan, inputs) <= 1e-12
    widen_channels(model, plan, {"stem": [0]})
    attention = model.attention
    assert (attention.num_heads, attention.head_dim, attention.embed_dim) == (3, SIZE, 3 * SIZE)
    assert attention.kdim == options.get("kdim", 3 * SIZE)
    assert model(inputs).shape == (2, 5, 2)
    assert trace_channels(model, inputs)["stem"].width == 3


@pytest.mark.parametrize("options", OPTIONS)
def test_head_size_of_torch_goes_with_channels_of_the_stream(options, inputs):
    model = TorchAttention(**options)
    plan = trace_head_sizes(model, inputs)
    group = plan["stem"]
    assert (group.width, group.score_scale) == (SIZE, "size")
    assert verify_plan(model, plan, inputs) <= 1e-12
    widen_channels(model, plan, {"stem": [0]})
    attention = model.attention
    assert (attention.num_heads, attention.head_dim, attention.embed_dim) == (2, 5, 10)
    assert model(inputs).shape == (2, 5, 2)


def test_a_stream_of_data_holds_the_heads_of_torch(inputs):
    model = nn.TransformerEncoderLayer(8, 2, 12)
    plan = trace_channels(model, torch.randn(2, 5, 8))
    reasons = {barrier.reason for group in plan for barrier in group.barriers}
    assert any("heads x head size equal to the width of the queries' stream" in r for r in reasons)


def test_an_encoder_of_torch_grows_by_heads(inputs):
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 12, batch_first=True, norm_first=True)
    model = nn.Sequential(nn.Linear(3, WIDTH), layer, nn.Linear(WIDTH, 2))
    plan = trace_channels(model, inputs)
    assert {barrier.kind for barrier in plan["0"].barriers} == {"normalised"}
    widen_channels(model, plan, {"0": [0]}, allow={"normalised"})
    assert layer.self_attn.num_heads == 3
    assert model(inputs).shape == (2, 5, 2)
    # What torch's fused path needs to know is changed too.
    assert model.eval()(inputs).shape == (2, 5, 2)
