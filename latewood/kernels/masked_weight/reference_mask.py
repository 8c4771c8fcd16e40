"""The masked weight and the sum of its mask in plain torch: the oracle of the native form."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["mask_slope", "mask_sum_reference", "masked_weight_reference"]


def masked_weight_reference(
    weight: Tensor, logits: Tensor, temperature: Tensor, scale: float
) -> Tensor:
    """``masked_weight`` in plain torch: the oracle, on any device and in any float dtype."""
    return (weight * (scale * torch.sigmoid(temperature * logits))).to(weight.dtype)


def mask_sum_reference(logits: Tensor, temperature: Tensor, scale: float) -> Tensor:
    """``mask_sum`` in plain torch: the oracle, on any device and in any float dtype."""
    return scale * torch.sigmoid(temperature * logits).sum()


def mask_slope(logits: Tensor, temperature: Tensor, scale: float) -> Tensor:
    """Derivative of the mask in its logits, differentiable again."""
    p = torch.sigmoid(temperature * logits)
    return scale * temperature * p * (1 - p)
