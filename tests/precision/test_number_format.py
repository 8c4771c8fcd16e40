"""The grid of 1 to 8 bits against the worked numbers of its definition."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latewood.errors import RequestError
from latewood.precision import bits_of, code, quantize, s_of, value

NUMBERS = [-2.3, -1.9, -1.2, -0.74, -0.26, -0.01, 0, 0.01, 0.26, 0.74, 1.0, 1.2, 1.49, 1.9, 2.3]


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        (1, [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        (2, [0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 3]),
        (4, [0, 0, 3, 5, 6, 7, 8, 8, 9, 10, 12, 12, 13, 15, 15]),
        (8, [0, 6, 51, 80, 111, 127, 128, 128, 144, 175, 192, 204, 223, 249, 255]),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_codes(bits, expected, dtype):
    assert code(torch.tensor(NUMBERS, dtype=dtype), bits).tolist() == expected


def test_values():
    assert value(torch.arange(2), 1).tolist() == [-1, 1]
    assert value(torch.arange(4), 2).tolist() == [-1.5, -0.5, 0.5, 1.5]
    assert value(torch.arange(8), 3)[4:].tolist() == [0.25, 0.75, 1.25, 1.75]
    assert value(torch.arange(16), 4)[[0, 7, 8, 15]].tolist() == [-1.875, -0.125, 0.125, 1.875]


@given(st.floats(-3, 3, width=32), st.integers(1, 8), st.integers(1, 8))
def test_codes_nest(number, first, second):
    wide, narrow = max(first, second), min(first, second)
    weights = torch.tensor([number])
    assert code(weights, wide) >> (wide - narrow) == code(weights, narrow)


@pytest.mark.parametrize("tiny", [1e-9, 1e-30, 1e-45])
def test_the_smallest_numbers_keep_their_sign(tiny):
    assert code(torch.tensor([-tiny, tiny]), 4).tolist() == [7, 8]


@given(st.floats(-2, 2), st.integers(1, 8))
def test_error_bound_and_idempotence(number, bits):
    weights = torch.tensor([number], dtype=torch.float64)
    quantized = quantize(weights, bits)
    assert (weights - quantized).abs() <= 2.0 ** (1 - bits)
    assert torch.equal(quantize(quantized, bits), quantized)
    assert torch.equal(quantized, value(code(weights, bits), bits).double())


@pytest.mark.parametrize(("bits", "error"), [(1, 0.57735), (2, 0.288675), (4, 0.0721688)])
def test_error_of_uniform_numbers(bits, error):
    weights = torch.linspace(-2, 2, 400_001, dtype=torch.float64)
    rms = (weights - quantize(weights, bits)).square().mean().sqrt()
    assert rms == pytest.approx(error, abs=2e-5)


def test_bits_of_each_channel():
    weights = torch.tensor([[0.3, 0.3, 0.3], [-1.2, -1.2, -1.2]])
    bits = torch.tensor([1, 2, 4])
    assert quantize(weights, bits).tolist() == [[1, 0.5, 0.375], [-1, -1.5, -1.125]]
    assert value(code(weights, bits), bits).tolist() == quantize(weights, bits).tolist()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bits", [1, 4, 8])
def test_half_precision_gives_the_codes_of_its_values(dtype, bits):
    weights = torch.linspace(-2.2, 2.2, 999).to(dtype)
    assert torch.equal(code(weights, bits), code(weights.double(), bits))
    assert quantize(weights, bits).dtype == dtype
    assert torch.equal(quantize(weights, bits).double(), quantize(weights.double(), bits))


def test_bits_and_noise():
    bits = torch.tensor([2, 4, 8, 1.5], dtype=torch.float64)
    expected = torch.tensor([0, -1.945910, -4.844187, 0.881374], dtype=torch.float64)
    torch.testing.assert_close(s_of(bits), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(bits_of(s_of(bits)), bits, atol=1e-12, rtol=0)
    assert s_of(1) == math.inf
    assert bits_of(torch.tensor(-500.0)).isfinite()


@pytest.mark.parametrize(("bits", "slope"), [(2, -0.721348), (4, -1.262358), (8, -1.431424)])
def test_slope_of_bits(bits, slope):
    s = s_of(torch.tensor(float(bits), dtype=torch.float64)).requires_grad_()
    bits_of(s).backward()
    assert s.grad == pytest.approx(slope, abs=1e-6)


def test_empty():
    assert code(torch.empty(0, 3), torch.tensor([1, 2, 4])).shape == (0, 3)
    assert value(torch.empty(0, dtype=torch.uint8), 2).shape == (0,)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: code(torch.zeros(2), 0), "bits: got 0"),
        (lambda: code(torch.zeros(2), 9), "bits: got 9"),
        (lambda: code(torch.zeros(2), True), "bits: got True"),
        (lambda: code(torch.zeros(2), 2.5), "bits: got 2.5"),
        (lambda: code(torch.zeros(2), torch.tensor([1, 2, 3])), "bits: got 'shape"),
        (lambda: code(torch.zeros(2), torch.tensor([1, 12])), "bits: got '1 to 12'"),
        (lambda: code(torch.zeros(2), torch.tensor([1.0, 2])), "bits: got torch.float32"),
        (lambda: code(torch.tensor([math.nan]), 2), "1 NaN"),
        (lambda: code(torch.zeros(2, dtype=torch.int8), 2), "weights: got torch.int8"),
        (lambda: value(torch.tensor([4]), 2), "codes: got '4 to 4'"),
        (lambda: value(torch.tensor([-1]), 2), "codes: got '-1"),
        (lambda: value(torch.tensor([0.5]), 2), "codes: got torch.float32"),
        (lambda: s_of(0.5), "bits: got 0.5"),
    ],
)
def test_bad_input(call, named):
    with pytest.raises(RequestError, match=named):
        call()
