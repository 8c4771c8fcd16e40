"""Packed layers compute what the finished layers did that they were made of."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_networks import finished
from torch import Tensor, nn

from latewood.errors import RequestError
from latewood.precision import PackedConv2d, PackedLinear, code, value
from latewood.precision.code_streams import from_stream, stream_bytes, to_stream
from latewood.precision.layer_packing import packed_layer

MIXED = torch.tensor([1, 4, 2, 1, 0, 2, 8, 1, 3])


def close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()))


@given(st.integers(0, 10_000), st.lists(st.integers(0, 8), min_size=1, max_size=9))
def test_streams_hold_the_codes_and_nothing_else(seed: int, widths: list[int]) -> None:
    generator = torch.Generator().manual_seed(seed)
    bits = torch.tensor(widths, dtype=torch.uint8)
    shape = (3, len(widths), 2, 1)
    levels = (2.0 ** bits.float()).reshape(1, -1, 1, 1)
    codes = (torch.rand(shape, generator=generator) * levels).to(torch.uint8)
    stream = to_stream(codes, bits)
    assert stream.numel() == stream_bytes(bits, shape) == (sum(widths) * 6 + 7) // 8
    assert torch.equal(from_stream(stream, bits, shape), codes)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.booleans(), st.booleans(), st.booleans())
def test_a_packed_linear_layer_computes_the_same(
    seed: int, quantised: bool, signed: bool, pruned: bool
) -> None:
    torch.manual_seed(seed)
    layer = nn.Linear(9, 5, bias=bool(seed % 2))
    gone = torch.rand(5, 9) < 0.3 if pruned else None
    finished(layer, MIXED, input_bits=MIXED if quantised else None, signed=signed, pruned=gone)
    inputs = torch.randn(4, 3, 9).abs() if not signed else torch.randn(4, 3, 9)
    packed = packed_layer(layer)
    assert close(packed(inputs), layer(inputs))
    assert torch.allclose(packed.dequantized(), layer.weight, rtol=1e-6)
    assert bool((packed.dequantized()[:, MIXED == 0] == 0).all())
    if gone is not None:
        assert bool((packed.dequantized()[gone] == 0).all())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.booleans(), st.booleans())
def test_a_packed_convolution_computes_the_same(seed: int, signed: bool, pruned: bool) -> None:
    torch.manual_seed(seed)
    padding = [0, 1, "same", (2, 0)][seed % 4]
    stride = 1 if padding == "same" else 1 + seed % 2
    layer = nn.Conv2d(9, 4, (3, 2), padding=padding, stride=stride, dilation=1 + seed % 2)
    gone = torch.rand(4, 9, 3, 2) < 0.5 if pruned else None
    finished(layer, MIXED, input_bits=MIXED, signed=signed, pruned=gone)
    inputs = torch.randn(2, 9, 8, 7)
    packed = packed_layer(layer)
    assert close(packed(inputs), layer(inputs))
    assert close(packed(inputs[0]), layer(inputs[0]))
    last = inputs.contiguous(memory_format=torch.channels_last)
    assert torch.equal(packed(last), packed(inputs))


def test_channels_without_weights_leave_the_layer() -> None:
    layer = nn.Linear(6, 4)
    gone = torch.zeros(4, 6, dtype=torch.bool)
    gone[:, 2] = True
    finished(layer, torch.full((6,), 2), input_bits=torch.full((6,), 2), pruned=gone)
    packed = packed_layer(layer)
    assert packed.weight_bits.tolist() == packed.input_bits.tolist() == [2, 2, 0, 2, 2, 2]
    assert not packed.masked
    assert packed.stored_bits == 4 * 5 * 2


def test_weights_and_inputs_of_different_bits() -> None:
    torch.manual_seed(0)
    layer = finished(nn.Linear(40, 8), torch.ones(40), input_bits=torch.full((40,), 8))
    inputs = torch.randn(6, 40)
    assert close(packed_layer(layer)(inputs), layer(inputs))


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_truncation_is_quantisation_to_fewer_bits(bits: int) -> None:
    torch.manual_seed(1)
    weight, inputs = torch.randn(5, 9), torch.randn(7, 9)
    width = torch.tensor([1, 4, 2, 1, 4, 2, 8, 1, 3], dtype=torch.uint8)
    fewer = width.clamp(max=bits)
    layers = [PackedLinear(code(weight, w), w, torch.ones(5), input_bits=w) for w in (width, fewer)]
    layers[0].truncate(bits)
    assert torch.equal(layers[0].packed_codes, layers[1].packed_codes)
    assert torch.equal(layers[0](inputs), layers[1](inputs))
    expected = value(code(inputs, fewer), fewer) @ value(code(weight, fewer), fewer).t()
    assert close(layers[0](inputs), expected)


def packed_linear() -> PackedLinear:
    torch.manual_seed(2)
    bits = torch.tensor([1, 2, 4, 1, 2], dtype=torch.uint8)
    return PackedLinear(code(torch.randn(3, 5), bits), bits, torch.rand(3) + 1, input_bits=bits)


def test_state_dict_copies_and_pickles() -> None:
    layer, inputs = packed_linear(), torch.randn(4, 5)
    expected = layer(inputs)
    assert layer.packed_codes.numel() == (3 * 10 + 7) // 8
    assert torch.equal(copy.deepcopy(layer)(inputs), expected)
    assert torch.equal(pickle.loads(pickle.dumps(layer))(inputs), expected)
    other = packed_linear()
    other.packed_codes.fill_(0)
    assert not torch.equal(other(inputs), expected)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(inputs), expected)


def test_other_types_and_zero_sizes() -> None:
    layer, inputs = packed_linear(), torch.randn(4, 5)
    expected = layer(inputs)
    assert layer(inputs.double()).dtype == torch.float64
    assert torch.equal(layer(inputs.double()).float(), expected)
    assert layer(inputs.bfloat16()).dtype == torch.bfloat16
    assert layer(inputs[:0]).shape == (0, 3)
    assert torch.equal(layer(inputs.t().contiguous().t()), expected)
    layer.half()
    assert layer.weight_scale.dtype == torch.float32
    assert torch.equal(layer(inputs), expected)
    layer.to("meta")
    assert layer.packed_codes.is_meta


def test_compile_and_export() -> None:
    torch.manual_seed(3)
    bits = torch.tensor([1, 2, 4], dtype=torch.uint8)
    codes = code(torch.randn(4, 3, 3, 3), bits.reshape(-1, 1, 1))
    convolution = PackedConv2d(codes, bits, torch.ones(4), input_bits=bits, padding=1, stride=2)
    network = nn.Sequential(convolution, nn.ReLU(), nn.Flatten())
    inputs = torch.randn(2, 3, 6, 6)
    expected = network(inputs)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(inputs), expected)
    exported = torch.export.export(network, (inputs,)).module()
    assert torch.equal(exported(inputs), expected)
    torch.library.opcheck(
        torch.ops.latewood.packed_product.default,
        (
            *(inputs, convolution._buffers_of_call(), list(convolution.shape), False, False),
            *(convolution.tap_numbers, "conv2d"),
        ),
        test_utils=("test_schema", "test_faketensor"),
    )


@pytest.mark.parametrize("bad", [float("nan")])
def test_nan_is_refused(bad: float) -> None:
    layer, inputs = packed_linear(), torch.randn(4, 5)
    inputs[2, 3] = bad
    for form in (inputs, inputs.double()):
        with pytest.raises(RequestError, match="NaN"):
            layer(form)


def test_infinite_inputs_take_the_outermost_codes() -> None:
    layer = packed_linear()
    assert torch.equal(layer(torch.full((1, 5), torch.inf)), layer(torch.full((1, 5), 9.0)))


CODES = torch.ones(3, 4, dtype=torch.uint8)
ONES = torch.ones(4, dtype=torch.uint8)
SCALE = torch.ones(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PackedLinear(CODES.float(), ONES, SCALE), "codes: got torch.float32"),
        (lambda: PackedLinear(CODES, ONES[:3], SCALE), "bits: got 'shape"),
        (lambda: PackedLinear(CODES, ONES * 9, SCALE), "bits: got 9"),
        (lambda: PackedLinear(CODES, ONES, torch.ones(4)), "scale: got 'shape"),
        (lambda: PackedLinear(CODES, ONES, SCALE, input_bits=ONES * 0), "input_bits: got"),
        (lambda: PackedLinear(CODES, ONES, SCALE, input_scale=0.0), "input_scale: got 0.0"),
        (lambda: PackedLinear(CODES, ONES, SCALE, mask=CODES), "mask: got torch.uint8"),
        (lambda: PackedLinear(CODES.to("meta"), ONES, SCALE), "codes: got 'a meta tensor'"),
        (lambda: PackedConv2d(CODES, ONES, SCALE), "codes: got"),
        (lambda: packed_linear()(torch.randn(2, 4)), "inputs: got"),
        (lambda: packed_linear().truncate(0), "bits: got 0"),
        (lambda: packed_layer(nn.LSTM(3, 3)), "LSTM has no packed form"),
        (lambda: packed_layer(nn.Linear(3, 3)), "no number format"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(call, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        call()
    assert message in str(caught.value)


def test_formats_without_a_packed_form_say_why() -> None:
    deep = finished(nn.Conv3d(4, 4, 3), torch.ones(4).reshape(4, 1, 1, 1)[:, 0, 0, 0])
    mirrored = finished(nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), torch.ones(4))
    for layer, reason in ((deep, "Conv3d has no packed form"), (mirrored, "reflect padding")):
        with pytest.raises(RequestError, match=reason):
            packed_layer(layer)
