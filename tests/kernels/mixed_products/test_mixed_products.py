"""Products of codes against integers, the worked numbers of the method, and each other."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from warm_python import run

from latewood.errors import RequestError
from latewood.kernels.dispatch import native
from latewood.kernels.mixed_products import (
    CodeWeights,
    PreparedProduct,
    Taps,
    byte_products,
    mixed_conv2d,
    mixed_matmul,
    reference_products,
)
from latewood.precision import code

BITS = torch.tensor([4, 4, 2, 2, 1, 1, 4, 2])
INPUT = torch.tensor([[0.9, -0.3, 1.7, 0.2, -1.6, 0.44, -0.44, 1.25]])
WEIGHT = torch.tensor(
    [
        [0.37, -1.42, 1.93, -0.08, 0.61, -0.55, 1.11, -1.99],
        [1.5, 0, -0.5, 0.125, -0.126, 2.5, -2.5, 0.999],
    ]
)
PALETTES = ([1], [2], [3], [4], [8], [1, 2], [1, 2, 4], [1, 8], [3, 4], [5, 6, 7], [*range(1, 9)])


def random_codes(shape: tuple[int, ...], bits: Tensor, generator: torch.Generator) -> Tensor:
    levels = (2.0 ** bits.float()).reshape(1, -1, *(1,) * (len(shape) - 2))
    return (torch.rand(shape, generator=generator) * levels).to(torch.uint8)


def plain_sums(weights: CodeWeights, inputs: Tensor, taps: Taps) -> Tensor:
    """Position by position and tap by tap, where the tap is inside the image."""
    w, x = weights.grid_weights(), weights.grid_inputs(inputs, 1)
    kernel = (w.shape[2], w.shape[3])
    rows, columns = taps.output_sizes((x.shape[2], x.shape[3]), kernel)
    sums = torch.zeros(len(x), len(w), rows, columns, dtype=torch.int64)
    for i in range(rows):
        for j in range(columns):
            for a in range(kernel[0]):
                for b in range(kernel[1]):
                    y = i * taps.stride[0] - taps.padding[0] + a * taps.dilation[0]
                    z = j * taps.stride[1] - taps.padding[1] + b * taps.dilation[1]
                    if 0 <= y < x.shape[2] and 0 <= z < x.shape[3]:
                        sums[:, :, i, j] += x[:, :, y, z] @ w[:, :, a, b].t()
    return sums


def test_the_worked_dot_product() -> None:
    codes = code(WEIGHT, BITS)
    assert codes.tolist() == [[9, 2, 3, 1, 1, 0, 12, 0], [14, 8, 1, 2, 0, 1, 0, 2]]
    assert mixed_matmul(codes, code(INPUT, BITS), BITS).tolist() == [[-117, 277]]


def test_partial_sums_by_width() -> None:
    weights, inputs = code(WEIGHT, BITS), code(INPUT, BITS)
    for width, expected in ((4, [27, 133]), (2, [-1, 1]), (1, [-2, 2])):
        there = width == BITS
        assert mixed_matmul(weights[:, there], inputs[:, there], width).tolist() == [expected]


def test_the_common_grid_of_bytes() -> None:
    bits = BITS.to(torch.uint8)
    weights = CodeWeights(code(WEIGHT, BITS)[:, :, None, None], bits, bits)
    assert weights.grid_weights().flatten(1).tolist() == [
        [3, -11, 12, -4, 8, -8, 9, -12],
        [13, 1, -4, 4, -8, 8, -15, 4],
    ]
    assert weights.unit == 1 / 64
    inputs = code(INPUT, BITS)[:, :, None, None]
    assert weights.grid_inputs(inputs, 1).flatten().tolist() == [7, -3, 12, 4, -8, 8, -3, 12]
    assert byte_products(weights, inputs, Taps()).flatten().tolist() == [-117, 277]


def test_one_bit_is_xnor_and_popcount() -> None:
    generator = torch.Generator().manual_seed(0)
    weights, inputs = (random_codes((n, 77), torch.ones(77), generator) for n in (5, 3))
    different = (weights[None] ^ inputs[:, None]).sum(2)
    assert torch.equal(mixed_matmul(weights, inputs, 1), (77 - 2 * different).to(torch.int32))


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.booleans(), st.booleans(), st.sampled_from([1, 2]))
def test_every_form_gives_the_same_integers(
    seed: int, convolution: bool, masked: bool, threads: int
) -> None:
    generator = torch.Generator().manual_seed(seed)

    def pick(*choices: int) -> int:
        return choices[int(torch.randint(len(choices), (), generator=generator))]

    palette = torch.tensor(PALETTES[pick(*range(len(PALETTES)))], dtype=torch.uint8)
    channels = pick(1, 2, 3, 4, 5, 16, 17, 31, 64) if convolution else pick(1, 3, 8, 65, 130, 701)
    outputs = pick(1, 2, 7, 8, 9, 31, 32, 33, 65, 100)
    bits = palette[torch.randint(len(palette), (channels,), generator=generator)]
    input_bits = bits
    if pick(0, 1):
        input_bits = palette[torch.randint(len(palette), (channels,), generator=generator)]
    left = torch.rand(channels, generator=generator) < 0.1
    bits, input_bits = bits.masked_fill(left, 0), input_bits.masked_fill(left, 0)
    kernel, sizes, taps = (1, 1), (1, 1), Taps()
    images = pick(1, 2, 4, 5, 33)
    if convolution:
        kernel, sizes = (pick(1, 2, 3), pick(1, 3)), (pick(3, 5, 8), pick(3, 4, 9))
        images = pick(1, 2)
        taps = Taps(
            (pick(1, 2, 3), pick(1, 2)), (pick(0, 1, 4), pick(0, 1)), (pick(0, 1), pick(0, 2))
        )
    weights = random_codes((outputs, channels, *kernel), bits, generator)
    mask = torch.rand(weights.shape, generator=generator) < 0.7 if masked else None
    product = CodeWeights(weights, bits, input_bits, mask, bool(pick(0, 1)))
    inputs = random_codes((images, channels, *sizes), input_bits, generator)
    expected = plain_sums(product, inputs, taps)
    assert torch.equal(reference_products(product, inputs, taps).long(), expected)
    if int(bits.max()) <= 4 and int(input_bits.max()) <= 4 and not product.never_negative:
        assert torch.equal(byte_products(product, inputs, taps).long(), expected)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for form in (inputs, inputs.contiguous(memory_format=torch.channels_last)):
            assert torch.equal(PreparedProduct(product).sums(form, taps).long(), expected)
    finally:
        torch.set_num_threads(before)


BASELINE = """
import torch
from latewood.kernels.mixed_products import mixed_conv2d
generator = torch.Generator().manual_seed(3)
total = 0
for palette in ([1], [2], [1, 2, 4], [4, 8]):
    width = torch.tensor(palette)[torch.randint(len(palette), (37,), generator=generator)]
    levels = (2.0 ** width).reshape(1, -1, 1, 1)
    w = (torch.rand((41, 37, 3, 3), generator=generator) * levels).to(torch.uint8)
    x = (torch.rand((2, 37, 6, 7), generator=generator) * levels).to(torch.uint8)
    sums = mixed_conv2d(w, x, width, padding=1).long()
    total = (total * 31 + int((sums * torch.arange(sums.numel()).view_as(sums)).sum())) % 2**40
print(total)
"""


@pytest.mark.skipif(native() is None, reason="the compiled kernels are not built")
def test_every_instruction_set_gives_the_same_integers() -> None:
    results = []
    forms = (("native", "baseline"), ("native", "avx2"), ("native", ""), ("reference", ""))
    for kernels, limit in forms:
        chosen = {"LATEWOOD_KERNELS": kernels, "LATEWOOD_INSTRUCTION_SET": limit}
        done = run(["-c", BASELINE], env={**os.environ, **chosen})
        assert done.returncode == 0, done.stderr
        results.append(done.stdout)
    assert len(set(results)) == 1


def test_the_order_of_channels_does_not_matter() -> None:
    generator = torch.Generator().manual_seed(1)
    bits = torch.tensor([1, 2, 4])[torch.randint(3, (50,), generator=generator)]
    weights, inputs = random_codes((9, 50), bits, generator), random_codes((6, 50), bits, generator)
    order = torch.randperm(50, generator=generator)
    assert torch.equal(
        mixed_matmul(weights, inputs, bits),
        mixed_matmul(weights[:, order], inputs[:, order], bits[order]),
    )


@pytest.mark.parametrize(
    ("width", "channels"), [(1, 200_001), (2, 70_001), (4, 1_000_003), (8, 33_025)]
)
def test_the_largest_sums_of_long_rows(width: int, channels: int) -> None:
    """Narrow partial sums are emptied before they overflow: all products at their largest."""
    top = 2**width - 1
    codes = torch.full((1, channels), top, dtype=torch.uint8)
    sums = mixed_matmul(torch.cat([codes, codes * 0]), codes, width)
    assert sums.tolist() == [[top**2 * channels, -(top**2) * channels]]


def test_sums_beyond_int32_are_refused() -> None:
    codes = torch.zeros(1, 33_026, dtype=torch.uint8)
    with pytest.raises(RequestError, match=r"bits: .*int32"):
        mixed_matmul(codes, codes, 8)


def test_views_of_other_strides() -> None:
    generator = torch.Generator().manual_seed(2)
    weights = random_codes((20, 14), torch.full((14,), 4), generator)
    inputs = random_codes((18, 14), torch.full((14,), 4), generator)
    expected = mixed_matmul(weights[::2, 1::2].contiguous(), inputs[::3, 1::2].contiguous(), 4)
    assert torch.equal(mixed_matmul(weights[::2, 1::2], inputs[::3, 1::2], 4), expected)
    whole = mixed_matmul(weights, inputs, 4)
    turned = mixed_matmul(weights.t().contiguous().t(), inputs.t().contiguous().t(), 4)
    assert torch.equal(turned, whole)
    assert torch.equal(mixed_matmul(weights, inputs[:1].expand(5, -1), 4)[3], whole[0])


@pytest.mark.parametrize("sizes", [(0, 3, 4), (2, 0, 4), (2, 3, 0), (0, 0, 0)])
def test_sizes_of_zero(sizes: tuple[int, int, int]) -> None:
    m, n, k = sizes
    inputs, weights = (torch.zeros(rows, k, dtype=torch.uint8) for rows in (m, n))
    assert torch.equal(mixed_matmul(weights, inputs, 2), torch.zeros(m, n, dtype=torch.int32))


def test_meta_tensors_have_a_shape() -> None:
    weights = torch.zeros(5, 4, 3, 3, dtype=torch.uint8, device="meta")
    inputs = torch.zeros(2, 4, 8, 8, dtype=torch.uint8, device="meta")
    assert mixed_conv2d(weights, inputs, 2, padding=1, stride=2).shape == (2, 5, 4, 4)


CODES = torch.ones(3, 4, dtype=torch.uint8)
IMAGES = torch.ones(1, 4, 3, 3, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mixed_matmul(CODES.float(), CODES, 1), "weight_codes: got torch.float32"),
        (lambda: mixed_matmul(CODES, CODES.to(torch.int8), 1), "input_codes: got torch.int8"),
        (lambda: mixed_matmul(CODES, CODES[:, :3], 1), "input_codes: got '3 channels'"),
        (lambda: mixed_matmul(CODES, CODES[0], 1), "input_codes: got 'shape"),
        (lambda: mixed_matmul(CODES, CODES, 0), "bits: got '0 to 0'"),
        (lambda: mixed_matmul(CODES, CODES, 9), "bits: got '9 to 9'"),
        (lambda: mixed_matmul(CODES, CODES, 1.5), "bits: got torch.float32"),
        (lambda: mixed_matmul(CODES, CODES, "two"), "bits: got 'two'"),
        (lambda: mixed_matmul(CODES, CODES, [1, 2]), "bits: got 'shape"),
        (lambda: mixed_matmul(CODES * 2, CODES, 1), "weight_codes: got 'codes beyond"),
        (lambda: mixed_matmul(CODES, CODES * 2, 1), "input_codes: got 'codes beyond"),
        (lambda: mixed_matmul(CODES, CODES.to("meta"), 1), "input_codes: got 'meta'"),
        (lambda: mixed_matmul(CODES, CODES, 1, mask=CODES), "mask: got torch.uint8"),
        (lambda: mixed_matmul(CODES, CODES, 1, mask=CODES[:1] > 0), "mask: got"),
        (lambda: mixed_matmul(CODES.to_sparse(), CODES, 1), "weight_codes, layout"),
        (lambda: mixed_conv2d(IMAGES, IMAGES, 1, padding=-1), "padding: got -1"),
        (lambda: mixed_conv2d(IMAGES, IMAGES, 1, padding="full"), "padding: got 'full'"),
        (lambda: mixed_conv2d(IMAGES, IMAGES, 1, stride=0), "stride: got 0"),
        (lambda: mixed_conv2d(IMAGES, IMAGES, 1, dilation=2), "input_codes: got '3 x 3'"),
        (lambda: mixed_conv2d(IMAGES[..., :0], IMAGES, 1), "a kernel with a tap"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(call: Callable[[], object], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        call()
    assert message in str(caught.value)
