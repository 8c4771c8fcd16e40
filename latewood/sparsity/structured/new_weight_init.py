"""Values of entries that have never existed before."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from latewood.sparsity.structured.structure_spec import Held

__all__ = ["Birth", "newborn"]

Birth = Literal["initial", "kaiming"]

_PRELU = 0.25


def newborn(held: Held, shape: tuple[int, ...], generator: torch.Generator, birth: Birth) -> Tensor:
    """Fresh values for a tensor: normal weights, neutral norms, no biases.

    Weights have the deviation of the full model's own initial values ("initial"), or Kaiming's with
    the full layer's fan-in ("kaiming": variance 2 / fan_in, in recurrent layers 1 / fan_in). Norms
    have weight 1, bias 0, mean 0 and variance 1.

    Args:
        held: the tensor in the full model.
        shape: to make.
        generator: drawn from for weights.
        birth: the scale.

    Returns:
        float32 on the CPU.
    """
    if len(held.shape) > 1:
        deviation = held.deviation if birth == "initial" else _kaiming(held)
        return torch.randn(shape, generator=generator) * deviation
    if isinstance(held.module, nn.PReLU):
        return torch.full(shape, _PRELU)
    # Of vectors only norms have a weight or a variance.
    return torch.full(shape, float(held.attribute in ("weight", "running_var")))


def _kaiming(held: Held) -> float:
    transposed = isinstance(held.module, nn.modules.conv._ConvTransposeNd)
    fan_in = math.prod(held.shape) // held.shape[1 if transposed else 0]
    recurrent = isinstance(held.module, nn.RNNBase | nn.RNNCellBase)
    return math.sqrt((1.0 if recurrent else 2.0) / fan_in)
