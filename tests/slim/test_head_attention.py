"""Attention heads: torch's own layer, its encoder, and the layer that can lose heads."""

import pytest
import torch
from torch import nn

from latewood.errors import RequestError
from latewood.slim import HeadAttention, load_slim, save_slim, slim


def attention(**options):
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(8, 4, dtype=torch.float64, **options).eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    return layer


def stream(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("masks", [(), ("causal",), ("padding",), ("causal", "padding")])
def test_the_same_function_as_torch(batch_first, bias, masks):
    layer = attention(batch_first=batch_first, bias=bias)
    made = HeadAttention.of(layer)
    x = stream(2, 5, 8) if batch_first else stream(5, 2, 8)
    named = {}
    if "causal" in masks:
        named["attn_mask"] = torch.triu(torch.ones(5, 5, dtype=torch.bool), 1)
    if "padding" in masks:
        named["key_padding_mask"] = torch.arange(5) >= torch.tensor([[5], [3]])
    expected = layer(x, x, x, need_weights=False, **named)[0]
    found, weights = made(x, x, x, need_weights=False, **named)
    assert weights is None
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_other_streams_and_no_batch():
    layer = attention(kdim=5, vdim=6)
    made = HeadAttention.of(layer)
    inputs = stream(3, 8), stream(4, 5), stream(4, 6)
    expected = layer(*inputs, need_weights=False)[0]
    torch.testing.assert_close(made(*inputs)[0], expected, rtol=1e-12, atol=1e-12)
    with pytest.raises(RequestError, match="no weights"):
        made(*inputs, need_weights=True)


def encoder(*, norm_first, batch_first=True):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(
        16, 4, 24, batch_first=batch_first, norm_first=norm_first, dtype=torch.float64
    )
    stack = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    ends = [nn.Linear(*sizes, dtype=torch.float64) for sizes in ((5, 16), (16, 3))]
    return nn.Sequential(ends[0], stack, ends[1]).eval()


@pytest.mark.parametrize("side", ["columns", "values"])
@pytest.mark.parametrize("norm_first", [True, False])
def test_the_encoder_of_torch_loses_heads_and_hidden_units(norm_first, side, tmp_path):
    model, inputs = encoder(norm_first=norm_first), stream(3, 4, 5)
    with torch.no_grad():
        first = model[1].layers[0]
        if side == "columns":
            first.self_attn.out_proj.weight[:, 4:8] = 0
        else:
            first.self_attn.in_proj_weight[2 * 16 + 4 : 2 * 16 + 8] = 0
            first.self_attn.in_proj_bias[2 * 16 + 4 : 2 * 16 + 8] = 0
        first.linear2.weight[:, :10] = 0
    smaller = slim(model, inputs)
    assert smaller[1].layers[0].self_attn.num_heads == 3
    assert smaller[1].layers[0].self_attn.query.out_features == 12
    assert smaller[1].layers[0].linear1.out_features == 14
    torch.testing.assert_close(smaller(inputs), model(inputs), rtol=1e-12, atol=1e-12)

    save_slim(smaller, tmp_path / "net")
    again = load_slim(tmp_path / "net", lambda: encoder(norm_first=norm_first))
    assert torch.equal(again(inputs), smaller(inputs))


def test_a_layer_of_the_encoder_goes_whole():
    model, inputs = encoder(norm_first=True, batch_first=False), stream(3, 4, 5)
    with torch.no_grad():
        for each in (model[1].layers[0].self_attn.out_proj, model[1].layers[0].linear2):
            each.weight.zero_()
            each.bias.zero_()
    smaller = slim(model, inputs)
    assert len(smaller[1].layers) == smaller[1].num_layers == 1
    torch.testing.assert_close(smaller(inputs), model(inputs), rtol=1e-12, atol=1e-12)


def test_where_no_head_goes_torchs_layer_stays():
    model, inputs = encoder(norm_first=False), stream(3, 4, 5)
    model[1].layers[1].linear2.weight.data[:, :10] = 0
    smaller = slim(model, inputs)
    assert type(smaller[1].layers[0].self_attn) is nn.MultiheadAttention
    assert smaller[1].layers[1].linear1.out_features == 14


class WithWeights(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = attention(batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x)[1]


def test_attention_that_is_asked_for_its_weights_stays():
    model = WithWeights()
    model.attention.out_proj.weight.data[:, :2] = 0
    smaller = slim(model, stream(2, 5, 8))
    assert type(smaller.attention) is nn.MultiheadAttention


class Padded(nn.Module):
    def __init__(self, *, nested):
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True, dtype=torch.float64)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=nested)
        self.head = nn.Linear(16, 3, dtype=torch.float64)

    def forward(self, x, padding):
        return self.head(self.encoder(x, src_key_padding_mask=padding))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(("nested", "heads"), [(False, 3), (True, 4)])
def test_padded_sequences_keep_what_torch_makes_of_the_padding(nested, heads):
    torch.manual_seed(0)
    model = Padded(nested=nested).eval()
    model.encoder.layers[0].self_attn.out_proj.weight.data[:, :4] = 0
    model.encoder.layers[0].linear2.weight.data[:, :10] = 0
    padding = torch.arange(5) >= torch.tensor([[5], [3]])
    inputs = stream(2, 5, 16), padding
    smaller = slim(model, inputs)
    assert smaller.encoder.layers[0].self_attn.num_heads == heads
    assert smaller.encoder.layers[0].linear1.out_features == 14
    with torch.no_grad():
        torch.testing.assert_close(smaller(*inputs), model(*inputs), rtol=1e-12, atol=1e-12)
