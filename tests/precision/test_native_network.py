"""Whole packed networks in one native call: the same bits as the steps in plain torch."""

from __future__ import annotations

import copy
import itertools
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from integer_networks import IMAGES, NETWORKS, packed_network
from packed_networks import finished, small_network
from torch import Tensor, nn

from latewood.errors import RequestError
from latewood.kernels.dispatch import native
from latewood.kernels.mixed_products import CodeWeights, Taps
from latewood.models import resnet20
from latewood.precision import PackedModel, load_packed, pack
from latewood.precision.integer_network import (
    Buffer,
    Elementwise,
    Encoder,
    Epilogue,
    FloatProduct,
    IntegerNetwork,
    PackedProduct,
    Pool,
    Step,
)
from latewood.precision.native_network import NativeNetwork, ProductForm
from latewood.precision.network_reference import reference_run

MODULE: Any = native()
pytestmark = pytest.mark.skipif(MODULE is None, reason="the native kernels are not built")
FORMS: tuple[ProductForm | None, ...] = ("panels", "lanes", None)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_form_gives_the_same_bits(name: str) -> None:
    network = packed_network(name).integer_network((3, 8, 8))
    assert isinstance(network, IntegerNetwork)
    expected = reference_run(network, IMAGES)
    for form in FORMS:
        made = NativeNetwork(MODULE, network, form)
        for count in (1, 3, 16):
            assert torch.equal(made.run(IMAGES[:count]), expected[:count])
        last = IMAGES.contiguous(memory_format=torch.channels_last)
        assert torch.equal(made.run(last), expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_run_takes_one_native_call(name: str) -> None:
    packed = packed_network(name)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for count in (1, 5):
                outputs = packed.run(IMAGES[:count])
                assert packed.execution == "one native call"
                with torch.inference_mode():
                    assert torch.equal(outputs, packed.network(IMAGES[:count]))
    finally:
        torch.set_num_threads(before)


def one_product(
    seed: int, sizes: tuple[int, int], form_of_bits: int
) -> tuple[IntegerNetwork, Tensor]:
    """Images that become codes, one product of random form, and codes that become numbers again."""
    generator = torch.Generator().manual_seed(seed)

    def pick(*choices: int) -> int:
        return choices[int(torch.randint(len(choices), (), generator=generator))]

    def codes(shape: tuple[int, ...], bits: Tensor) -> Tensor:
        levels = (2.0 ** bits.float()).reshape(1, -1, 1, 1)
        return (torch.rand(shape, generator=generator) * levels).to(torch.uint8)

    palette = torch.tensor(
        ([1], [2], [3], [4], [8], [1, 2, 4], [0, 1, 2], [1, 2, 4, 6, 8])[form_of_bits]
    )
    channels, outputs = pick(1, 3, 4, 5, 17), pick(1, 4, 7, 9)
    bits = palette[torch.randint(len(palette), (channels,), generator=generator)].to(torch.uint8)
    input_bits = bits
    if pick(0, 1):
        input_bits = palette[torch.randint(len(palette), (channels,), generator=generator)]
        input_bits = torch.where(bits > 0, input_bits.clamp(min=1), 0).to(torch.uint8)
    kernel = (pick(1, 2, 3), pick(1, 3, 4))
    taps = Taps(
        *((pick(1, 2, 3), pick(1, 2)), (pick(0, 1, 2), pick(0, 1, 3))),
        *((pick(0, 1), pick(0, 2)), (pick(1, 2), pick(1, 2))),
    )
    shape = (outputs, channels, *kernel)
    mask = torch.rand(shape, generator=generator) < 0.6 if pick(0, 1) else None
    weights = CodeWeights(codes(shape, bits), bits, input_bits, mask, bool(pick(0, 1)))
    rows = taps.output_sizes(sizes, kernel)
    buffers = (
        Buffer((channels, *sizes)),
        Buffer((channels, *sizes), input_bits),
        Buffer((outputs, *rows)),
    )
    offset = 2.0 if weights.never_negative else 0.0
    scale, bias = torch.randn(2, outputs, generator=generator)
    steps = (
        Elementwise(0, Epilogue(encoders=(Encoder(1, 0.7, offset),))),
        PackedProduct(1, "product", weights, taps, scale, bias, Epilogue(low=-5.0, target=2)),
    )
    images = 2 * torch.randn(2, channels, *sizes, generator=generator)
    return IntegerNetwork(buffers, steps, 0, 2, 4), images


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from([(8, 8), (5, 9), (6, 33), (11, 70), (9, 7)]),
    st.integers(0, 7),
)
def test_products_of_any_shape(seed: int, sizes: tuple[int, int], form_of_bits: int) -> None:
    network, images = one_product(seed, sizes, form_of_bits)
    expected = reference_run(network, images)
    for form in FORMS[:2]:
        assert torch.equal(NativeNetwork(MODULE, network, form).run(images), expected)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([1, 2, 3]), st.booleans())
def test_float_products_and_pools(seed: int, groups: int, with_bias: bool) -> None:
    generator = torch.Generator().manual_seed(seed)

    def pick(*choices: int) -> int:
        return choices[int(torch.randint(len(choices), (), generator=generator))]

    sizes, kernel = (pick(6, 7, 35), pick(6, 9, 40)), (pick(1, 2, 3), pick(1, 3))
    around, after = (pick(0, 2), pick(0, 1)), (pick(0, 1), pick(0, 3))
    taps = Taps((pick(1, 2), pick(1, 2, 3)), around, after, (pick(1, 2), pick(1, 2)))
    channels, outputs = 6, pick(6, 12)
    rows = taps.output_sizes(sizes, kernel)
    small = Taps((pick(1, 2), pick(1, 2)), (pick(0, 1), 1), (0, 0), (1, 1))
    small = Taps(small.stride, small.padding, small.padding)
    window = (2, 3)
    pooled = small.output_sizes(rows, window) if min(rows) >= 3 else None
    weight = torch.randn(outputs, channels // groups, *kernel, generator=generator)
    bias = torch.randn(outputs, generator=generator) if with_bias else None
    factor, addend = torch.randn(2, outputs, generator=generator)
    buffers = [Buffer((channels, *sizes)), Buffer((outputs, *rows))]
    steps: list[Step] = [
        FloatProduct(0, "", weight, bias, taps, groups, Epilogue(factor, addend, target=1))
    ]
    if pooled is not None:
        kind: Literal["max", "average"] = "max" if pick(0, 1) else "average"
        buffers += [Buffer((outputs, *pooled)), Buffer((outputs, 1, 1))]
        counts, divisor = bool(pick(0, 1)), (None, 5)[pick(0, 1)]
        steps += [
            Pool(1, kind, window, small, counts, divisor, Epilogue(target=2, high=1.0)),
            Pool(2, "mean", pooled, Taps(), True, None, Epilogue(target=3)),
        ]
    network = IntegerNetwork(tuple(buffers), tuple(steps), 0, len(buffers) - 1, 4)
    images = torch.randn(3, channels, *sizes, generator=generator)
    made = NativeNetwork(MODULE, network)
    assert torch.equal(made.run(images), reference_run(network, images))


def test_layers_that_stayed_in_floating_point() -> None:
    packed = pack(small_network(), IMAGES[:2])
    network = packed.integer_network((3, 8, 8))
    assert isinstance(network, IntegerNetwork)
    assert torch.equal(packed.run(IMAGES), reference_run(network, IMAGES))
    assert packed.execution == "one native call"


def resnet(bits: Tensor) -> PackedModel:
    torch.manual_seed(0)
    network = resnet20().eval()
    layers = [x for x in network.modules() if isinstance(x, nn.Conv2d)]
    for layer in layers[1:]:
        width = bits.repeat(-(-layer.weight.shape[1] // len(bits)))[: layer.weight.shape[1]]
        finished(layer, width, input_bits=width, signed=False, input_scale=0.5)
    return pack(network, torch.randn(2, 3, 32, 32))


def test_a_whole_resnet() -> None:
    packed = resnet(torch.tensor([1, 1, 2, 1, 4, 1, 2, 1]))
    images = torch.randn(1, 3, 32, 32)
    network = packed.integer_network((3, 32, 32))
    assert isinstance(network, IntegerNetwork)
    outputs = packed.run(images)
    assert packed.execution == "one native call"
    assert torch.equal(outputs, reference_run(network, images))
    with torch.inference_mode():
        difference = (outputs - packed.network(images)).norm() / outputs.norm()
    assert float(difference) < 0.05  # a rounding of the float stem may move a code


def test_changed_tensors_are_seen() -> None:
    packed = copy.deepcopy(packed_network("residual"))
    images = IMAGES[:2]

    def check() -> Tensor:
        outputs: Tensor = packed.run(images)
        with torch.inference_mode():
            assert torch.equal(outputs, packed.network(images))
        return outputs

    results = [check()]
    layer = next(iter(packed.layers.values()))
    layer.weight_scale.mul_(1.5)
    results.append(check())
    layer.truncate(2)
    results.append(check())
    packed.load_state_dict({k: v * 2 for k, v in packed.state_dict().items() if "bias" in k}, False)
    results.append(check())
    with torch.inference_mode():
        layer.bias = layer.bias + 1
    results.append(check())
    assert all(not torch.equal(one, other) for one, other in itertools.pairwise(results))


def test_copies_files_and_shapes(tmp_path: Path) -> None:
    packed = packed_network("residual")
    expected = packed.run(IMAGES)
    packed.save(tmp_path / "x.safetensors")
    for model in (
        copy.deepcopy(packed),
        pickle.loads(pickle.dumps(packed)),
        load_packed(tmp_path / "x.safetensors"),
    ):
        assert torch.equal(model.run(IMAGES), expected)
        assert model.execution == "one native call"
    large = torch.randn(2, 3, 13, 21)
    with torch.inference_mode():
        assert torch.equal(packed.run(large), packed.network(large))


def test_what_goes_operation_by_operation_says_why() -> None:
    packed = packed_network("perceptron")
    assert packed.run(IMAGES.double()).dtype == torch.float64
    assert packed.execution == "operation by operation: the inputs are of torch.float64 on cpu"
    assert packed.run(IMAGES[:0]).shape == (0, 3)
    assert packed.execution == "operation by operation: 0 images"
    with pytest.raises(RequestError, match="inputs: got"):
        packed.run(IMAGES[:, :, :4])
    outputs = torch.compile(packed.run, backend="aot_eager")(IMAGES)
    assert torch.equal(outputs, packed.run(IMAGES))


def test_hooks_of_layers_are_called() -> None:
    packed = copy.deepcopy(packed_network("perceptron"))
    layer = next(iter(packed.layers.values()))
    before = packed.run(IMAGES)
    handle = layer.register_forward_hook(lambda module, inputs, outputs: outputs * 0)
    assert torch.equal(packed.run(IMAGES), packed(IMAGES))
    assert packed.execution == "operation by operation: a layer has hooks"
    handle.remove()
    assert torch.equal(packed.run(IMAGES), before) and packed.execution == "one native call"


def test_nan_and_infinity() -> None:
    packed = packed_network("vgg")
    images = IMAGES[:2].clone()
    images[1, 2, 3, 4] = torch.inf
    with torch.inference_mode():
        assert torch.equal(packed.run(images), packed.network(images))
    images[1, 2, 3, 4] = torch.nan
    with pytest.raises(RequestError, match="NaN has no code"):
        packed.run(images)


BASELINE = """
import sys, torch
from latewood.kernels.dispatch import native
from latewood.precision import load_packed
print(native().instruction_set())
images = torch.load(sys.argv[1], weights_only=True)
for path in sys.argv[2:]:
    print(load_packed(path).run(images).view(torch.int32).long().sum().item())
"""


def test_every_instruction_set_gives_the_same_bits(tmp_path: Path) -> None:
    names, images = ["residual", "pre-activation", "odd taps"], IMAGES[:2]
    torch.save(images, tmp_path / "images.pt")
    for name in names:
        packed_network(name).save(tmp_path / name)
    done = subprocess.run(
        [
            *(sys.executable, "-c", BASELINE, str(tmp_path / "images.pt")),
            *(str(tmp_path / name) for name in names),
        ],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "LATEWOOD_INSTRUCTION_SET": "baseline", "OMP_NUM_THREADS": "1"},
    )
    form, *sums = done.stdout.split()
    assert form == "baseline"
    expected = [packed_network(x).run(images).view(torch.int32).long().sum() for x in names]
    assert [int(x) for x in sums] == [int(x) for x in expected]


BITS = torch.ones(3, dtype=torch.uint8)
CUTS = (torch.zeros(1), torch.zeros(3))
ONE_BY_ONE = [4, 4, 1, 1, 1, 1, 0, 0, 1, 1]


def refused(name: str) -> None:
    network = MODULE.IntegerNetwork()
    numbers, codes = network.buffer(3, 4, 4, None), network.buffer(3, 4, 4, BITS)
    outputs = network.buffer(2, 4, 4, None)
    if name == "shape":
        network.buffer(1 << 20, 1 << 20, 1, None)
    if name == "source":
        network.begin(codes)
    network.begin(numbers)
    if name == "unwritten":
        network.numbers(outputs)
    network.epilogue(None, None, -1, -1, -1.0, 1.0)
    if name == "alpha":
        network.encoder(codes, 0.0, 0.0, None, None, 0, *CUTS)
    if name == "thresholds":
        network.encoder(codes, 1.0, 0.0, torch.zeros(3, dtype=torch.int32), BITS, 1, *CUTS)
    if name == "nothing":
        network.numbers(numbers)
    network.encoder(codes, 1.0, 0.0, None, None, 0, *CUTS)
    network.numbers(numbers)
    network.epilogue(None, None, -1, codes if name == "kind" else outputs, -1.0, 1.0)
    scale = torch.ones(2, dtype=torch.float64 if name == "dtype" else torch.float32)
    weights = torch.full((2, 3, 1, 1), 2 if name == "code" else 1, dtype=torch.uint8)
    bits = BITS + 1 if name == "bits" else BITS
    taps = {"stride": [4, 4, 1, 1, 0, 1, 0, 0, 1, 1], "sizes": [3, 4, *ONE_BY_ONE[2:]]}
    network.packed(
        *(codes, weights, None, BITS, bits, False, 2, taps.get(name, ONE_BY_ONE)),
        *(scale, torch.zeros(2), None),
    )
    if name == "early":
        network.run(torch.zeros(1, 3, 4, 4), torch.zeros(1, 2, 4, 4), 1, 1)
    network.finish(outputs)
    if name == "input":
        network.run(torch.zeros(1, 3, 4, 5), torch.zeros(1, 2, 4, 4), 1, 1)
    if name == "output":
        network.run(torch.zeros(1, 3, 4, 4), torch.zeros(1, 2, 4, 4, dtype=torch.int32), 1, 1)
    if name == "late":
        network.numbers(numbers)


@pytest.mark.parametrize(
    "name",
    [
        *("shape", "source", "unwritten", "alpha", "thresholds", "nothing", "kind", "dtype"),
        *("code", "bits", "stride", "sizes", "early", "input", "output", "late"),
    ],
)
def test_native_code_refuses_what_does_not_fit(name: str) -> None:
    refused("")
    with pytest.raises(ValueError, match=r"\w"):
        refused(name)
