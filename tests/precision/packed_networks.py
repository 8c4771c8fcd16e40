"""Small finished networks with number formats, for the tests of packing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from latewood.precision import quantize
from latewood.precision.formats import leave_input_format, leave_weight_format

__all__ = ["finished", "small_network"]


def finished(
    layer: nn.Module,
    bits: Tensor,
    *,
    input_bits: Tensor | None = None,
    signed: bool = True,
    input_scale: float = 0.9,
    pruned: Tensor | None = None,
) -> nn.Module:
    """Puts a layer's weight on its grid, a width an input channel, and notes the formats."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    axes = (1,) * (weight.dim() - 2)
    width = bits.to(torch.uint8).reshape(1, -1, *axes)
    scale = (weight.detach().abs().flatten(1).amax(1) / 1.875).reshape(-1, 1, *axes)
    with torch.no_grad():
        grid = scale * quantize(weight / scale, width.clamp(min=1)) * (width > 0)
        weight.copy_(grid if pruned is None else grid.masked_fill(pruned, 0))
    leave_weight_format(layer, width, scale)
    if input_bits is not None:
        leave_input_format(
            layer, input_bits.to(torch.uint8), torch.tensor(input_scale), torch.tensor(signed)
        )
    return layer


def small_network(seed: int = 0) -> nn.Module:
    """A float stem, a convolution with a norm, one after a ReLU with pruned weights, and a head."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    mixed = torch.tensor([1, 1, 2, 4, 1, 2])
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        finished(nn.Conv2d(6, 10, 3, padding=1, bias=False), mixed, input_bits=mixed),
        nn.BatchNorm2d(10),
        nn.ReLU(),
        finished(
            nn.Conv2d(10, 7, 3, padding=1, stride=2),
            torch.ones(10),
            input_bits=torch.ones(10),
            signed=False,
            pruned=torch.rand(7, 10, 3, 3, generator=generator) < 0.4,
        ),
        nn.ReLU(),
        nn.Flatten(),
        finished(nn.Linear(7 * 16, 5), torch.full((112,), 8)),
    )
    norm = network[2]
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None
    assert norm.running_var is not None
    with torch.no_grad():
        norm.running_mean.normal_(0, 0.2)
        norm.running_var.uniform_(0.5, 2)
        norm.weight.uniform_(-1.5, 1.5)
        norm.bias.normal_(0, 0.3)
    return network.eval()
