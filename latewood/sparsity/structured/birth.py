"""Values of entries that have never existed before."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from latewood.sparsity.structured.skeleton import Held

__all__ = ["newborn"]

_PRELU = 0.25


def newborn(held: Held, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Fresh values for a tensor: Kaiming's with the full layer's fan-in, neutral norms, no biases.

    Weights are normal with variance 2 / fan_in, in recurrent layers 1 / fan_in; norms have weight
    1, bias 0, mean 0 and variance 1.

    Args:
        held: the tensor in the full model.
        shape: to make.
        generator: drawn from for weights.

    Returns:
        float32 on the CPU.
    """
    if len(held.shape) > 1:
        gain = 1.0 if isinstance(held.module, nn.RNNBase | nn.RNNCellBase) else 2.0
        std = math.sqrt(gain / _fan_in(held))
        return torch.randn(shape, generator=generator) * std
    if isinstance(held.module, nn.PReLU):
        return torch.full(shape, _PRELU)
    # Of vectors only norms have a weight or a variance.
    return torch.full(shape, float(held.attribute in ("weight", "running_var")))


def _fan_in(held: Held) -> int:
    transposed = isinstance(held.module, nn.modules.conv._ConvTransposeNd)
    return math.prod(held.shape) // held.shape[1 if transposed else 0]
