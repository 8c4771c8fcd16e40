"""Convolutions in groups and along one axis: equal to dense ones whose other weights are pruned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from packed_networks import finished
from torch import Tensor, nn

from latewood.errors import RequestError
from latewood.precision import (
    PackedConv1d,
    PackedConv2d,
    PackedGroupedConv2d,
    load_packed,
    pack,
)
from latewood.precision.layer_packing import packed_layer
from latewood.precision.network_compilation import compile_network
from latewood.precision.packed_groups import folded, unfolded

SHAPES = {"pairs": (3, 6, 9), "depthwise": (6, 6, 6), "two each": (6, 6, 12), "halves": (2, 8, 4)}
WIDTHS = {
    "1": [1],
    "4": [4],
    "8": [8],
    "mixed": [1, 2, 4],
    "some left": [0, 4, 1, 2],
    "none left": [0],
}


def both(
    shape: tuple[int, int, int],
    widths: list[int],
    *,
    quantised: bool = True,
    never_negative: bool = False,
    masked: bool = False,
) -> tuple[PackedGroupedConv2d, PackedConv2d]:
    groups, channels, outputs = shape
    generator = torch.Generator().manual_seed(channels + outputs + len(widths))
    bits = torch.tensor(widths, dtype=torch.uint8).repeat(channels)[:channels]
    sizes = (outputs // groups, channels, 3, 2)
    levels = (1 << bits.int()).reshape(1, -1, 1, 1)
    codes = (torch.randint(0, 256, sizes, generator=generator) % levels).to(torch.uint8)
    codes = unfolded(codes, groups)
    mask = torch.rand(codes.shape, generator=generator) < 0.6 if masked else None
    others: dict[str, Any] = {
        "input_bits": bits if quantised else None,
        "input_scale": 0.37,
        "never_negative": never_negative,
        "bias": torch.randn(outputs, generator=generator),
        "stride": (2, 1),
        "padding": (1, 2),
        "dilation": (1, 2),
    }
    scale = torch.randn(outputs, generator=generator)
    grouped = PackedGroupedConv2d(codes, bits, scale, groups=groups, mask=mask, **others)
    dense = torch.zeros((outputs, channels, 3, 2), dtype=torch.uint8)
    there = torch.zeros(dense.shape, dtype=torch.bool)
    for output in range(outputs):
        first = output // (outputs // groups) * (channels // groups)
        part = slice(first, first + channels // groups)
        dense[output, part] = codes[output]
        there[output, part] = True if mask is None else mask[output]
    return grouped, PackedConv2d(dense, bits, scale, mask=there, **others)


def test_folding_goes_back() -> None:
    weights = torch.arange(12 * 2 * 3).reshape(12, 2, 3)
    side_by_side = folded(weights, 3)
    assert side_by_side.shape == (4, 6, 3)
    # The second output of the third group, at its first channel.
    assert torch.equal(side_by_side[1, 4], weights[9, 0])
    assert torch.equal(unfolded(side_by_side, 3), weights)
    assert torch.equal(folded(weights, 1), weights)


@pytest.mark.parametrize("kernels", ["", "reference"])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("never_negative", [False, True], ids=["signed", "positive"])
@pytest.mark.parametrize("widths", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_groups_equal_a_dense_convolution_to_the_bit(
    shape: tuple[int, int, int],
    widths: list[int],
    never_negative: bool,
    masked: bool,
    kernels: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LATEWOOD_KERNELS", kernels)
    grouped, dense = both(shape, widths, never_negative=never_negative, masked=masked)
    images = torch.randn(2, shape[1], 7, 8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(grouped(images), dense(images))
    assert torch.equal(grouped(images[0]), dense(images)[0])
    wide = images.double()
    assert grouped(wide).dtype == torch.float64 and torch.equal(grouped(wide), dense(wide))
    last = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(grouped(last), dense(images))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_groups_with_inputs_as_they_are(shape: tuple[int, int, int]) -> None:
    grouped, dense = both(shape, [4, 0, 2], quantised=False, masked=True)
    images = torch.randn(2, shape[1], 7, 8)
    assert torch.allclose(grouped(images), dense(images), atol=1e-5)
    assert grouped.dequantized().shape == grouped.codes().shape == grouped.mask().shape  # type: ignore[union-attr]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_groups_keep_their_bits_and_lose_some(shape: tuple[int, int, int]) -> None:
    grouped, dense = both(shape, [4, 1, 2])
    images = torch.randn(2, shape[1], 7, 8)
    groups, _, outputs = shape
    assert grouped.stored_bits == int(grouped.weight_bits.sum()) * 6 * outputs // groups
    assert dense.stored_bits > grouped.stored_bits
    grouped.truncate(2)
    dense.truncate(2)
    assert torch.equal(grouped(images), dense(images))
    compiled = torch.export.export(grouped, (images,)).module()
    assert torch.equal(compiled(images), grouped(images))
    assert repr(grouped).endswith(f"{groups} groups)")


def test_wrong_arguments_are_named() -> None:
    codes, bits = torch.zeros(6, 2, 3, 3, dtype=torch.uint8), torch.ones(6, dtype=torch.uint8)
    call: Any = PackedGroupedConv2d
    for groups in (1, 0, 2.0, True, 4):
        with pytest.raises(RequestError, match="groups: got"):
            call(codes, bits, torch.ones(6), groups=groups)
    with pytest.raises(RequestError, match=r"bits: got 'shape \(6,\)'; expected \(4,\)"):
        call(codes, bits, torch.ones(6), groups=2)
    with pytest.raises(RequestError, match="mask: got"):
        call(codes, bits, torch.ones(6), groups=3, mask=torch.ones(3, 6, 3, 3, dtype=torch.bool))
    with pytest.raises(RequestError, match="codes: got"):
        call(codes[0], bits, torch.ones(6), groups=3)
    layer = call(codes, bits, torch.ones(6), groups=3, input_bits=bits)
    with pytest.raises(RequestError, match=r"inputs: got \(1, 5, 4, 4\)"):
        layer(torch.ones(1, 5, 4, 4))
    with pytest.raises(RequestError, match="NaN"):
        layer(torch.full((1, 6, 4, 4), torch.nan))
    with pytest.raises(RequestError, match="3 columns"):
        PackedConv1d(layer)


class Sequences(nn.Module):
    """Convolutions along time: dense, depthwise with a norm behind it, in groups."""

    def __init__(self) -> None:
        super().__init__()
        bits = torch.tensor([1, 2, 4, 1, 2, 4])
        spread = {"input_bits": bits, "signed": True}
        self.one = finished(nn.Conv1d(6, 8, 3, padding=1, stride=2), bits, **spread)  # type: ignore[arg-type]
        self.two = nn.Conv1d(8, 8, 4, padding="same", groups=8)
        self.norm = nn.BatchNorm1d(8)
        self.three = nn.Conv1d(8, 4, 3, dilation=2, groups=2, bias=False)
        for layer, inner in ((self.two, 1), (self.three, 4)):
            finished(layer, torch.full((inner,), 2), input_bits=torch.full((8,), 2), signed=False)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.relu(self.norm(self.two(torch.relu(self.one(inputs)))))
        return self.three(hidden)  # type: ignore[no-any-return]


class Images(nn.Module):
    """A depthwise convolution with a norm behind it and a pointwise one, as in mobile networks."""

    def __init__(self) -> None:
        super().__init__()
        two = torch.full((6,), 2)
        self.wide = finished(
            nn.Conv2d(6, 12, 3, padding=1, groups=6, bias=False), two[:1], input_bits=two
        )
        self.norm = nn.BatchNorm2d(12)
        self.point = finished(
            nn.Conv2d(12, 4, 1), two.repeat(2), input_bits=two.repeat(2), signed=False
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.point(torch.relu(self.norm(self.wide(images))))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("network", "inputs", "names"),
    [
        (Sequences, torch.randn(3, 6, 20), ["one.layer", "three.layer", "two.layer"]),
        (Images, torch.randn(3, 6, 8, 8), ["point", "wide+batch_norm"]),
    ],
)
def test_networks_pack_run_and_load(
    network: type[nn.Module], inputs: Tensor, names: list[str], tmp_path: Path
) -> None:
    torch.manual_seed(2)
    model = network().eval()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            assert norm.running_mean is not None and norm.running_var is not None
            norm.running_mean.normal_(0, 0.2)
            norm.running_var.uniform_(0.5, 2)
    packed = pack(model, inputs)
    assert sorted(packed.layers) == names and not packed.left
    assert torch.allclose(packed.run(inputs), model(inputs), atol=1e-5)
    packed.save(tmp_path / "x.safetensors")
    loaded = load_packed(tmp_path / "x.safetensors")
    assert torch.equal(loaded.run(inputs[:2]), packed.run(inputs[:2]))
    assert loaded.truncate(1).stored_bits < packed.stored_bits
    # Whole-network steps know none of these yet, and say so.
    assert isinstance(compile_network(packed.graph, tuple(inputs.shape[1:])), str)


@pytest.mark.parametrize(
    ("layer", "inputs"),
    [
        (nn.Linear(6, 4), torch.randn(3, 6)),
        (nn.Conv2d(6, 4, 3), torch.randn(2, 6, 5, 5)),
        (nn.Conv1d(6, 4, 3), torch.randn(2, 6, 5)),
    ],
)
def test_a_layer_alone_is_a_network(layer: nn.Module, inputs: Tensor) -> None:
    bits = torch.tensor([1, 2, 4, 1, 2, 4])
    packed = pack(finished(layer, bits, input_bits=bits), inputs)
    assert len(packed.layers) == 1
    assert torch.allclose(packed.run(inputs), layer(inputs), atol=1e-5)


def test_bits_that_differ_within_a_channel_of_a_group_are_named() -> None:
    layer = finished(nn.Conv2d(4, 4, 3, groups=2), torch.ones(2))
    layer.weight_bits = torch.ones(layer.weight.shape, dtype=torch.uint8)  # type: ignore[arg-type,union-attr]
    made = packed_layer(layer)
    assert isinstance(made, PackedGroupedConv2d)
    layer.weight_bits[0, 0, 0, 0] = 2  # type: ignore[index,union-attr]
    with torch.no_grad():
        layer.weight[0, 0, 0, 0] *= 0.5  # type: ignore[index,union-attr]
    with pytest.raises(RequestError, match="differ within an input channel"):
        packed_layer(layer)
