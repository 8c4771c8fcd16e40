"""What the plan says of layers: role, activation, norms, residual streams and fan-in."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from latewood.core.coupling import LayerPart, slice_channels, trace_channels, widen_channels
from latewood.core.transforms import attach


class Model(nn.Module):
    """A module from its layers and a function of them."""

    def __init__(self, forward, **layers) -> None:
        super().__init__()
        self.run = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *inputs):
        return self.run(self, *inputs)


def linear(inputs, outputs):
    return nn.Linear(inputs, outputs)


def layers(model, *inputs, **named):
    return trace_channels(model, inputs or named).layers


def between(function, **more):
    """Facts of the first of two layers with a function between them."""
    model = Model(lambda m, x: m.b(function(m.a(x))), a=linear(3, 8), b=linear(8, 2), **more)
    return layers(model, torch.randn(2, 3))["a.weight"]


def test_roles_of_a_chain():
    model = nn.Sequential(linear(3, 5), nn.ReLU(), linear(5, 4), nn.Tanh(), linear(4, 2))
    found = layers(model, torch.randn(1, 3))
    assert [layer.role for layer in found.values()] == ["input", "hidden", "output"]
    assert [layer.activation for layer in found.values()] == ["relu", "tanh", None]
    assert [layer.fan_in for layer in found.values()] == [3, 5, 4]


def new_gelu(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3))))


def in_place(x):
    x.relu_()
    return x


@pytest.mark.parametrize(
    ("function", "activation"),
    [
        (F.relu, "relu"),
        (lambda x: F.relu(x, inplace=True), "relu"),
        (in_place, "relu"),
        (lambda x: F.gelu(x.view(2, 2, 4).flatten(1) * 0.5 + 1), "gelu"),
        (lambda x: x * torch.sigmoid(1.702 * x), "silu"),
        (new_gelu, "gelu"),
        (lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))), "gelu"),
        (lambda x: F.softmax(x, -1), "softmax"),
        (lambda x: x.exp() / x.exp().sum(-1, keepdim=True), "softmax"),
        (lambda x: x * x, "square"),
        (lambda x: F.relu(x) ** 2, "relu"),
        (lambda x: x.clamp(min=0), "clamp"),
        (lambda x: x, None),
        (lambda x: x - x.mean(-1, keepdim=True), None),
        (lambda x: F.dropout(x, 0.1).transpose(0, 1).contiguous().transpose(0, 1), None),
        (lambda x: torch.fft.fft(x).real, "unknown"),
        (lambda x: F.relu(x) + x, "unknown"),
        (lambda x: torch.where(x > 0, x, 0.1 * x), "unknown"),
        (lambda x: torch.cat([F.relu(x[:, :4]), torch.tanh(x[:, 4:])], -1), "unknown"),
    ],
)
def test_the_activation_is_found_by_what_is_computed(function, activation):
    assert between(function).activation == activation


def rms(x):
    return x * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)


def standardised(x):
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred * centred).mean(-1, keepdim=True) + 1e-6)


@pytest.mark.parametrize(
    ("function", "normalised"),
    [
        (rms, True),
        (standardised, True),
        (lambda x: (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6), True),
        (lambda x: x / x.norm(dim=-1, keepdim=True), True),
        (lambda x: F.layer_norm(x, (8,)), True),
        (lambda x: F.normalize(x, dim=-1), True),
        (lambda x: F.layer_norm(x, (8,)) + x, None),
        (lambda x: 2 * x, False),
    ],
)
def test_norms_are_found_by_what_they_compute(function, normalised):
    layer = between(function)
    assert layer.normalised is normalised
    assert layer.activation is None


def test_parts_of_a_fused_layer_have_facts_of_their_own():
    def forward(m, x):
        gate, up = m.gate_up(x).chunk(2, dim=-1)
        return m.down(F.silu(gate) * up)

    model = Model(forward, gate_up=linear(3, 8), down=linear(4, 2))
    layer = layers(model, torch.randn(1, 3))["gate_up.weight"]
    assert layer.uses[0].parts == (
        LayerPart((0, 1, 2, 3), "silu", False),
        LayerPart((4, 5, 6, 7), None, False),
    )
    assert layer.activation == "unknown"


def causal_attention(m, x):
    batch, length, width = x.shape
    q, k, v = (
        part.view(batch, length, 2, width // 2).transpose(1, 2)
        for part in m.qkv(m.norm(x)).split(width, dim=2)
    )
    scores = q @ k.transpose(-2, -1) / math.sqrt(k.size(-1))
    mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, width)
    x = x + m.out(mixed)
    return m.head(x)


def test_queries_and_keys_meet_the_softmax_and_values_do_not():
    model = Model(
        causal_attention,
        norm=nn.LayerNorm(4),
        qkv=linear(4, 12),
        out=linear(4, 4),
        head=linear(4, 2),
    )
    found = layers(model, torch.randn(1, 5, 4))
    assert found["qkv.weight"].uses[0].parts == (
        LayerPart((*range(8),), "softmax", False),
        LayerPart((*range(8, 12),), None, False),
    )


@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_of_torch_is_two_layers(batch_first):
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=batch_first, norm_first=True)
    model = nn.Sequential(linear(3, 8), layer, nn.LayerNorm(8), linear(8, 2))
    found = layers(model, torch.randn(2, 5, 3))
    assert found["1.self_attn.in_proj_weight"].uses[0].parts == (
        LayerPart((*range(16),), "softmax", False),
        LayerPart((*range(16, 24),), None, False),
    )
    writers = {name for name, layer in found.items() if layer.writes_stream}
    assert writers == {"0.weight", "1.self_attn.out_proj.weight", "1.linear2.weight"}


def test_gates_of_a_recurrence_are_parts():
    found = layers(nn.LSTM(3, 2), torch.randn(4, 1, 3))
    assert found["weight_ih_l0"].uses[0].parts == (
        LayerPart((0, 1, 2, 3, 6, 7), "sigmoid", False),
        LayerPart((4, 5), "tanh", False),
    )
    assert [layer.role for layer in found.values()] == ["input", "hidden"]


class PreActivationBlock(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x):
        y = F.relu(self.norm1(x))
        skip = x if self.shortcut is None else self.shortcut(y)
        y = self.conv2(F.relu(self.norm2(self.conv1(y))))
        y += skip
        return y


def test_a_pre_activation_network_has_stream_writers():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        PreActivationBlock(4, 4),
        PreActivationBlock(4, 6),
        PreActivationBlock(6, 6),
        *(nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Flatten(), linear(6 * 36, 2)),
    )
    found = layers(model, torch.randn(1, 3, 8, 8))
    writers = {name for name, layer in found.items() if layer.writes_stream}
    # What a projection and a branch make together is the stream that the next block adds to.
    assert writers == {
        "0.weight", "1.conv2.weight", "2.conv2.weight", "2.shortcut.weight", "3.conv2.weight",
    }  # fmt: skip
    assert {layer.activation for name, layer in found.items() if name != "7.weight"} == {"relu"}


class PostActivationBlock(nn.Module):
    def __init__(self, width, norm=True):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width) if norm else nn.Identity()

    def forward(self, x):
        return F.relu(x + self.norm(self.conv(x)))


@pytest.mark.parametrize("norm", [True, False])
def test_a_norm_in_front_of_the_addition_makes_no_stream_writer(norm):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), PostActivationBlock(4, norm), nn.Conv2d(4, 2, 1))
    found = layers(model, torch.randn(1, 3, 8, 8))
    assert found["1.conv.weight"].writes_stream is not norm
    assert found["1.conv.weight"].normalised is norm
    assert found["1.conv.weight"].activation == "relu"


def test_a_sum_of_two_branches_is_no_residual_stream():
    model = Model(
        lambda m, x: m.head(m.a(x) + m.b(x)), a=linear(3, 4), b=linear(3, 4), head=linear(4, 2)
    )
    assert not any(layer.writes_stream for layer in layers(model, torch.randn(1, 3)).values())


def test_a_bounded_gate_does_not_write_to_the_stream():
    def forward(m, x):
        h = m.stem(x)
        return m.head(h + m.value(h) * torch.sigmoid(m.gate(h)))

    shapes = {"stem": (3, 4), "value": (4, 4), "gate": (4, 4), "head": (4, 2)}
    model = Model(forward, **{name: linear(*shape) for name, shape in shapes.items()})
    found = layers(model, torch.randn(1, 3))
    assert found["value.weight"].writes_stream
    assert not found["gate.weight"].writes_stream


def test_a_tied_embedding_has_two_uses():
    def forward(m, tokens):
        return m.head(m.tokens(tokens) + m.positions)

    model = Model(
        forward,
        tokens=nn.Embedding(7, 4),
        positions=nn.Parameter(torch.randn(5, 4)),
        head=nn.Linear(4, 7, bias=False),
    )
    model.head.weight = model.tokens.weight
    found = layers(model, torch.arange(5)[None])
    assert [use.role for use in found["tokens.weight"].uses] == ["input", "output"]
    assert [use.fan_in for use in found["tokens.weight"].uses] == [1, 4]
    assert [use.inputs for use in found["tokens.weight"].uses] == [None, 1]
    assert found["tokens.weight"].role is None
    assert found["tokens.weight"].fan_in is None
    assert found["positions"].role == "input"


def test_a_shared_layer_is_hidden_if_any_call_of_it_is():
    model = Model(
        lambda m, x: m.shared(F.relu(m.shared(F.relu(m.stem(x))))),
        stem=linear(3, 4),
        shared=linear(4, 4),
    )
    found = layers(model, torch.randn(1, 3))
    assert found["shared.weight"].role == "hidden"
    assert len(found["shared.weight"].uses) == 1
    assert found["shared.weight"].activation == "unknown"


@pytest.mark.parametrize(
    ("convolution", "fan_in"),
    [
        (nn.Conv2d(4, 6, 3), 36),
        (nn.Conv2d(4, 8, (3, 5), groups=2), 30),
        (nn.Conv2d(4, 4, 3, groups=4), 9),
        (nn.ConvTranspose2d(4, 6, 3), 36),
        (nn.ConvTranspose2d(4, 6, 4, stride=2), 16),
        (nn.ConvTranspose2d(4, 6, 4, stride=2, groups=2), 8),
    ],
)
def test_fan_in_of_convolutions(convolution, fan_in):
    model = nn.Sequential(nn.Conv2d(1, 4, 1), convolution, nn.ReLU(), nn.LazyConv2d(2, 1))
    model(torch.randn(1, 1, 9, 9))
    # Each output of a transposed convolution is a sum of that many products, or one row more.
    assert layers(model, torch.randn(1, 1, 9, 9))["1.weight"].fan_in == fan_in


def test_operations_on_weights_and_functional_code_are_seen_through():
    model = Model(
        lambda m, x: F.gelu(x @ m.w) @ m.v.t() if x.shape[0] else x,
        w=nn.Parameter(torch.randn(3, 4)),
        v=nn.Parameter(torch.randn(2, 4)),
    )
    found = layers(model, torch.randn(1, 3))
    assert (found["w"].role, found["w"].activation) == ("input", "gelu")
    assert (found["w"].uses[0].inputs, found["w"].uses[0].outputs) == (0, 1)
    assert (found["v"].role, found["v"].fan_in) == ("output", 4)


def test_transformed_weights_keep_their_names_and_facts():
    class Halved(nn.Module):
        order = 0

        def forward(self, weight):
            return weight / 2

    model = nn.Sequential(linear(3, 5), nn.ReLU(), linear(5, 2))
    plain = layers(model, torch.randn(1, 3))
    attach(model[0], "weight", Halved())
    assert layers(model, torch.randn(1, 3)) == plain


def test_what_the_output_does_not_reach_has_no_role():
    def forward(m, x):
        m.seen = m.aside(x)
        return m.head(x)

    model = Model(forward, aside=linear(3, 4), head=linear(3, 2))
    found = layers(model, torch.randn(1, 3))
    assert found["aside.weight"].activation == "unknown"
    assert found["head.weight"].role == "input"


def convolutions():
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3, groups=2)),
        *(nn.ReLU(), nn.Flatten(), linear(96, 2)),
    ), (torch.randn(1, 1, 8, 8),)


def fused():
    model = Model(lambda m, x: m.down(F.glu(m.up(x))), up=linear(3, 8), down=linear(4, 2))
    return model, (torch.randn(1, 3),)


def recurrent():
    return nn.Sequential(nn.LSTM(3, 4, 2), Model(lambda m, x: m.head(x[0]), head=linear(4, 2))), (
        torch.randn(3, 1, 3),
    )


@pytest.mark.parametrize("build", [convolutions, fused, recurrent])
def test_the_plan_of_a_resized_model_is_that_of_a_new_trace(build):
    model, inputs = build()
    plan = trace_channels(model, inputs)
    wider = widen_channels(model, plan, {group.name: [0, 1] for group in plan.free})
    assert wider.layers == trace_channels(model, inputs).layers
    narrow = slice_channels(model, wider, {group.name: [0, 2] for group in wider.free})
    assert narrow.layers == trace_channels(model, inputs).layers
    assert narrow.layers != wider.layers
