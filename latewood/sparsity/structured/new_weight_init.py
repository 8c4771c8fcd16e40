"""Values of entries that have never existed before."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from latewood.sparsity.structured.structure_spec import TensorSpec

__all__ = ["NewWeightScale", "new_values"]

NewWeightScale = Literal["initial", "kaiming"]

_PRELU = 0.25


def new_values(
    tensor: TensorSpec, shape: tuple[int, ...], generator: torch.Generator, scale: NewWeightScale
) -> Tensor:
    """Values of new entries of a tensor: normal weights, neutral norms, no biases.

    Weights have the deviation of the full model's own initial values ("initial"), or Kaiming's with
    the full layer's fan-in ("kaiming": variance 2 / fan_in, in recurrent layers 1 / fan_in). Norms
    have weight 1, bias 0, mean 0 and variance 1.

    Args:
        tensor: as it is in the full model.
        shape: to make.
        generator: drawn from for weights.
        scale: of the weights.

    Returns:
        float32 on the CPU.
    """
    if len(tensor.shape) > 1:
        deviation = tensor.deviation if scale == "initial" else _kaiming(tensor)
        return torch.randn(shape, generator=generator) * deviation
    if isinstance(tensor.module, nn.PReLU):
        return torch.full(shape, _PRELU)
    # Of vectors only norms have a weight or a variance.
    return torch.full(shape, float(tensor.attribute in ("weight", "running_var")))


def _kaiming(tensor: TensorSpec) -> float:
    transposed = isinstance(tensor.module, nn.modules.conv._ConvTransposeNd)
    fan_in = math.prod(tensor.shape) // tensor.shape[1 if transposed else 0]
    recurrent = isinstance(tensor.module, nn.RNNBase | nn.RNNCellBase)
    return math.sqrt((1.0 if recurrent else 2.0) / fan_in)
