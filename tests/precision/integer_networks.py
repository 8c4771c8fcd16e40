"""Networks of many shapes whose layers are all packed, for the tests of whole networks."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from packed_networks import finished
from torch import Tensor, nn
from torch.nn import functional as F

from latewood.precision import PackedModel, pack

__all__ = ["IMAGES", "NETWORKS", "packed_network"]

IMAGES = 2 * torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(5))

MIXED = torch.tensor([1, 1, 2, 4, 1, 2])


def mixed(channels: int) -> Tensor:
    return MIXED.repeat(-(-channels // 6))[:channels]


def packed_convolution(
    inputs: int,
    outputs: int,
    kernel: int | tuple[int, int] = 3,
    *,
    bits: Tensor | None = None,
    signed: bool = True,
    pruned: bool = False,
    **others: object,
) -> nn.Module:
    layer = nn.Conv2d(inputs, outputs, kernel, **others)  # type: ignore[arg-type]
    width = mixed(inputs) if bits is None else bits
    gone = torch.rand(layer.weight.shape) < 0.4 if pruned else None
    return finished(layer, width, input_bits=width, signed=signed, pruned=gone)


def packed_linear(inputs: int, outputs: int, *, signed: bool = True) -> nn.Module:
    bits = mixed(inputs)
    return finished(nn.Linear(inputs, outputs), bits, input_bits=bits, signed=signed)


def stem(outputs: int, **others: object) -> nn.Module:
    eight = torch.full((3,), 8)
    return packed_convolution(3, outputs, bits=eight, padding=1, **others)


def disturbed(network: nn.Module) -> nn.Module:
    """With batch norms of both signs and statistics of their own, in evaluation mode."""
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d | nn.BatchNorm1d):
            assert norm.running_mean is not None and norm.running_var is not None
            with torch.no_grad():
                norm.running_mean.normal_(0, 0.3)
                norm.running_var.uniform_(0.3, 2)
                norm.weight.uniform_(-1.5, 1.5)
                norm.bias.normal_(0, 0.5)
    return network.eval()


class Residual(nn.Module):
    """A stream that two formats read, a shortcut with a stride, and a sum that is clipped."""

    def __init__(self, width: int = 7) -> None:
        super().__init__()
        self.stem, self.norm = stem(width, bias=False), nn.BatchNorm2d(width)
        self.one = packed_convolution(width, width, padding=1, signed=False, bias=False)
        self.norm_one = nn.BatchNorm2d(width)
        self.two = packed_convolution(width, width, padding=1, signed=False)
        self.norm_two = nn.BatchNorm2d(width)
        two = torch.full((width,), 2)
        self.down = packed_convolution(width, 9, 1, stride=2, bits=two)
        self.three = packed_convolution(width, 9, padding=1, stride=2, signed=False, bias=False)
        self.norm_three = nn.BatchNorm2d(9)
        self.last = packed_convolution(9, 4, signed=False, pruned=True)

    def forward(self, images: Tensor) -> Tensor:
        hidden = F.relu(self.norm(self.stem(images)))
        inner = F.relu(self.norm_one(self.one(hidden)))
        stream = F.relu(self.norm_two(self.two(inner)) + hidden)
        outer = self.norm_three(self.three(stream))
        outer += self.down(stream)
        return self.last(F.relu(outer))  # type: ignore[no-any-return]


class PreActivation(nn.Module):
    """A norm that stands apart, behind a stream that is read as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = stem(5), nn.BatchNorm2d(5)
        self.one = packed_convolution(5, 5, padding=1, signed=False)

    def forward(self, images: Tensor) -> Tensor:
        stream = self.stem(images)
        return stream + self.one(F.hardtanh(self.norm(stream), -0.5, 1.5))  # type: ignore[no-any-return]


def vgg() -> nn.Module:
    return nn.Sequential(
        *(stem(6), nn.BatchNorm2d(6), nn.ReLU()),
        *(packed_convolution(6, 10, padding=1, signed=False, bias=False), nn.BatchNorm2d(10)),
        *(nn.ReLU(), nn.MaxPool2d(2)),
        *(
            packed_convolution(10, 34, (2, 3), padding="same", signed=False, pruned=True),
            nn.ReLU6(),
        ),
        *(nn.MaxPool2d(3, stride=2, padding=1), nn.Dropout(), nn.Flatten()),
        *(packed_linear(34 * 4, 33, signed=False), nn.BatchNorm1d(33), nn.ReLU(inplace=True)),
        packed_linear(33, 5, signed=False),
    )


def odd_taps() -> nn.Module:
    empty = torch.tensor([1, 0, 2, 4, 8])
    return nn.Sequential(
        packed_convolution(3, 5, (2, 3), bits=torch.full((3,), 8), padding=(1, 0)),
        packed_convolution(5, 7, (3, 2), bits=empty, stride=(2, 1), padding=(0, 2)),
        nn.ReLU(),
        packed_convolution(7, 6, (3, 2), dilation=(1, 2), padding="same", signed=False),
        nn.AvgPool2d(3, stride=2, padding=1),
        packed_convolution(6, 3, 1, bits=torch.full((6,), 3)),
    )


def perceptron() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        *(packed_linear(192, 40), nn.BatchNorm1d(40), nn.ReLU()),
        *(packed_linear(40, 37, signed=False), nn.ReLU(), packed_linear(37, 3, signed=False)),
    )


def uniform(bits: int) -> Callable[[], nn.Module]:
    def network() -> nn.Module:
        widths = [torch.full((n,), bits) for n in (3, 18, 35)]
        return nn.Sequential(
            packed_convolution(3, 18, bits=widths[0], padding=1),
            nn.ReLU(),
            packed_convolution(18, 35, bits=widths[1], padding=1, stride=2, signed=False),
            nn.ReLU(),
            packed_convolution(35, 8, bits=widths[2], padding=1, signed=False),
        )

    return network


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "residual": Residual,
    "pre-activation": PreActivation,
    "vgg": vgg,
    "odd taps": odd_taps,
    "perceptron": perceptron,
    **{f"{bits} bit": uniform(bits) for bits in (1, 2, 3, 4, 8)},
}
"""All take images (3, 8, 8); their sums are of integers alone."""


@functools.cache
def packed_network(name: str) -> PackedModel:
    """One of them, packed."""
    torch.manual_seed(1)
    return pack(disturbed(NETWORKS[name]()), IMAGES[:2])
