"""Integer networks: the steps they have, where codes change, and what they compute."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from integer_networks import IMAGES, NETWORKS, packed_network
from packed_networks import finished, small_network
from torch import Tensor, nn
from torch.nn import functional as F

from latewood.precision import PackedModel, pack
from latewood.precision.code_thresholds import encoded, number_cuts, sum_thresholds
from latewood.precision.fused_arithmetic import fused_multiply_add
from latewood.precision.integer_network import IntegerNetwork, PackedProduct, step_buffers
from latewood.precision.network_compilation import compile_network
from latewood.precision.network_reference import reference_run


def compiled(packed: PackedModel, shape: tuple[int, ...] = (3, 8, 8)) -> IntegerNetwork:
    network = compile_network(packed.graph, shape)
    assert isinstance(network, IntegerNetwork), network
    return network


@pytest.mark.parametrize("name", NETWORKS)
def test_the_steps_compute_what_the_graph_does(name: str) -> None:
    packed = packed_network(name)
    network = compiled(packed)
    for count in (1, 3):
        expected = packed.network(IMAGES[:count])
        assert torch.equal(reference_run(network, IMAGES[:count]), expected)


def test_every_buffer_is_written_once_before_it_is_read() -> None:
    for name in NETWORKS:
        network = compiled(packed_network(name))
        there = {network.source}
        for step in network.steps:
            reads, writes = step_buffers(step)
            assert there.issuperset(reads) and there.isdisjoint(writes)
            there |= set(writes)
        assert len(there) == len(network.buffers) and network.target in there


def test_what_only_codes_read_has_thresholds() -> None:
    network = compiled(packed_network("residual"))
    lines = network.describe().splitlines()
    assert [line.partition(",")[0] for line in lines] == [
        *(
            "numbers of 3 x 8 x 8",
            "packed product stem+batch_norm",
            "packed product one+batch_norm_1",
        ),
        *("packed product two+batch_norm_2", "packed product down"),
        *("packed product three+batch_norm_3", "packed product last"),
    ]
    assert "to codes by thresholds" in lines[2] and "numbers" not in lines[2]
    assert "residual, clip, to codes, to codes" in lines[3]
    (step,) = [x for x in network.steps if isinstance(x, PackedProduct) and "one+" in x.name]
    signs = step.epilogue.encoders[0].signs
    assert signs is not None and sorted(set(signs.tolist())) == [-1, 1]


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from([1, 2, 3, 4]),
    st.booleans(),
    st.floats(0.01, 30),
    st.sampled_from([None, 0.0, -0.7]),
)
def test_thresholds_give_the_code_of_every_sum(
    seed: int, bits: int, never_negative: bool, alpha: float, low: float | None
) -> None:
    generator = torch.Generator().manual_seed(seed)
    channels, largest = 9, int(torch.randint(1, 900, (), generator=generator))
    scale = torch.randn(channels, generator=generator) * torch.tensor([1e-6, 0.01, 1.0]).repeat(3)
    scale[3] = 0.0
    bias = torch.randn(channels, generator=generator)
    width = torch.randint(0, bits + 1, (channels,), generator=generator).to(torch.uint8)
    offset = 2.0 if never_negative else 0.0

    def numbers(sums: Tensor) -> Tensor:
        values = sums.float() * scale + bias
        return values if low is None else values.clamp_min(low)

    thresholds, signs = sum_thresholds(numbers, scale >= 0, largest, alpha, offset, width)
    sums = torch.arange(-largest, largest + 1).reshape(-1, 1).expand(-1, channels)
    counted = torch.zeros(sums.shape, dtype=torch.int64)
    for place in range(thresholds.shape[1]):
        counted += (sums * signs >= thresholds[:, place]) & ((1 << width.long()) - 1 > place)
    assert torch.equal(counted, encoded(numbers(sums), alpha, offset, width).long())


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([1, 2, 4]), st.sampled_from([0.0, 2.0]), st.floats(1e-3, 1e3))
def test_cuts_give_the_code_of_numbers_beside_them(bits: int, offset: float, alpha: float) -> None:
    cuts = number_cuts(alpha, offset, bits)
    below = torch.nextafter(cuts, torch.tensor(-torch.inf))
    numbers = torch.cat([cuts, below, torch.randn(50) * 3 * alpha, torch.tensor([torch.inf])])
    width = torch.tensor([bits], dtype=torch.uint8)
    expected = encoded(numbers.reshape(-1, 1), alpha, offset, width).flatten().long()
    assert torch.equal((numbers.reshape(-1, 1) >= cuts).sum(1), expected)


def test_one_rounding_of_a_product_and_a_sum() -> None:
    tiny, one = torch.tensor(2.0**-60), torch.tensor(1.0)
    tie = 1 + torch.tensor(2.0**-24)  # rounds to 1; with something more to the next number
    assert float(tie) == 1.0
    half = torch.tensor(2.0**-12)
    assert float(fused_multiply_add(half, half, one)) == 1.0
    above = fused_multiply_add(half * (1 + 2.0**-23), half, one)
    assert float(above) == 1 + 2.0**-23
    assert float(fused_multiply_add(tiny, one, one)) == 1.0
    mean, factor = torch.randn(1000), torch.randn(1000)
    norm = F.batch_norm(mean[None], torch.zeros(1000), torch.ones(1000), factor, mean, False)
    close = fused_multiply_add(mean, factor * torch.rsqrt(torch.ones(1000) + 1e-5), mean)
    assert torch.allclose(norm[0], close)


def test_layers_in_floating_point_are_steps_too() -> None:
    packed = pack(small_network(), IMAGES[:2])
    network = compiled(packed)
    outputs = reference_run(network, IMAGES[:3])
    assert torch.allclose(outputs, packed.network(IMAGES[:3]), atol=1e-5)
    assert "float product 0.weight" in network.describe()


class Reason(nn.Module):
    def __init__(self, function: object) -> None:
        super().__init__()
        self.layer = finished(nn.Linear(6, 6), torch.ones(6), input_bits=torch.ones(6))
        self.function = function

    def forward(self, inputs: Tensor) -> Tensor:
        return self.function(self.layer, inputs)  # type: ignore[operator,no-any-return]


@pytest.mark.parametrize(
    ("function", "shape", "reason"),
    [
        (lambda layer, x: torch.sin(layer(x)), (2, 6), "the operation aten.sin.default"),
        (lambda layer, x: layer(x[:, None])[:, 0], (2, 6), "aten."),
        (lambda layer, x: layer(x), (2, 3, 6), "an input of 3 axes"),
        (lambda layer, x: layer(x) + 1, (2, 6), "something else than the network's values"),
        (lambda layer, x: (layer(x), x), (2, 6), "more than one tensor"),
        (lambda layer, x: x.t() @ layer(x), (2, 6), "the operation aten.t.default"),
    ],
)
def test_what_has_no_steps_says_why(function: object, shape: tuple[int, ...], reason: str) -> None:
    packed = pack(Reason(function).eval(), torch.randn(shape))
    assert reason in str(compile_network(packed.graph, shape[1:]))


class InPlace(nn.Module):
    """Clips what is read again afterwards through a view."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = finished(nn.Linear(6, 6), torch.ones(6), input_bits=torch.ones(6))

    def forward(self, inputs: Tensor) -> Tensor:
        hidden: Tensor = self.layer(inputs)
        view = hidden.view(-1, 6)
        clipped = F.relu(hidden, inplace=True)
        return self.layer(clipped) + view  # type: ignore[no-any-return]


def test_values_that_change_under_their_readers_have_no_steps() -> None:
    packed = pack(InPlace().eval(), torch.randn(2, 6))
    assert "on what is read later" in str(compile_network(packed.graph, (6,)))


class DeadEnds(nn.Module):
    """Layers whose outputs nobody reads, as auxiliary heads leave them."""

    def __init__(self) -> None:
        super().__init__()
        self.unread = finished(nn.Conv2d(2, 3, 3), torch.ones(2), input_bits=torch.ones(2))
        self.layer = finished(nn.Conv2d(2, 4, 3), torch.ones(2), input_bits=torch.ones(2))
        self.norm = nn.BatchNorm2d(4)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.layer(images)
        self.norm(F.relu(hidden)).mean((2, 3))
        self.unread(F.avg_pool2d(images, 2))
        return F.relu6(hidden)


def test_what_nobody_reads_has_no_steps() -> None:
    images = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    packed = pack(DeadEnds().eval(), images)
    network = compiled(packed, (2, 8, 8))
    assert [step.source for step in network.steps] == [0, 1]
    assert torch.equal(packed.run(images), packed.network(images))
    assert torch.equal(reference_run(network, images), packed.network(images))


def test_grouped_convolutions_are_named() -> None:
    two = torch.full((4,), 2)
    layer = finished(nn.Conv2d(4, 4, 3, groups=4), two[:1], input_bits=two)
    packed = pack(nn.Sequential(layer).eval(), torch.randn(2, 4, 5, 5))
    assert compile_network(packed.graph, (4, 5, 5)) == "the layer 0, a packed convolution in groups"


class View(nn.Module):
    """Refuses adjacent channels, which only torch meets and compiled code does not."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = finished(nn.Conv2d(2, 4, 3), torch.ones(2), input_bits=torch.ones(2))

    def forward(self, images: Tensor) -> Tensor:
        hidden: Tensor = self.layer(images)
        return hidden.view(hidden.size(0), -1)


def test_a_network_that_views_its_images_runs_in_either_way() -> None:
    images = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    packed = pack(View().eval(), images)
    assert torch.equal(packed(images), packed.run(images))
    assert packed.run(images.double()).shape == (2, 144)
