"""The masked weight of continuous sparsification and the sum of its mask, with their gradients."""

from __future__ import annotations

from torch import Tensor

from latewood.errors import invalid
from latewood.kernels.dispatch import native_for
from latewood.kernels.masked_weight.native_mask import MaskedWeight, MaskSum, is_plain_number
from latewood.kernels.masked_weight.reference_mask import (
    mask_sum_reference,
    masked_weight_reference,
)
from latewood.kernels.misfits import require_memory

__all__ = ["mask_sum", "mask_sum_reference", "masked_weight", "masked_weight_reference"]


def masked_weight(weight: Tensor, logits: Tensor, temperature: Tensor, scale: float) -> Tensor:
    """Multiplies a weight by its soft mask.

    ``weight * scale * sigmoid(temperature * logits)``, the mask in at least float32.

    Args:
        weight: any shape.
        logits: (s in the paper) same shape as ``weight``.
        temperature: (beta in the paper) 0-dim tensor.
        scale: (c) factor of the mask.

    Returns:
        The masked weight, with the shape and dtype of ``weight``; differentiable, also twice, in
        ``weight`` and ``logits``.

    Raises:
        RequestError: if the shapes differ, or memory of an input is not there.

    Source: Savarese, Silva, Maire, "Winning the Lottery with Continuous Sparsification" (2020).
    """
    if weight.shape != logits.shape:
        raise invalid("logits", tuple(logits.shape), f"the weight's shape {tuple(weight.shape)}")
    if not is_plain_number(temperature) or native_for(weight, logits) is None:
        require_memory(weight=weight, logits=logits)
        return masked_weight_reference(weight, logits, temperature, scale)
    result: Tensor = MaskedWeight.apply(weight, logits, temperature, scale)
    return result


def mask_sum(logits: Tensor, temperature: Tensor, scale: float) -> Tensor:
    """Sums a soft mask.

    ``sum(scale * sigmoid(temperature * logits))``

    Args:
        logits: (s in the paper) any shape.
        temperature: (beta in the paper) 0-dim tensor.
        scale: (c) factor of the mask.

    Returns:
        0-dim tensor, differentiable, also twice, in ``logits``.

    Source: Savarese, Silva, Maire, "Winning the Lottery with Continuous Sparsification" (2020).
    """
    if not is_plain_number(temperature) or native_for(logits) is None:
        require_memory(logits=logits)
        return mask_sum_reference(logits, temperature, scale)
    result: Tensor = MaskSum.apply(logits, temperature, scale)
    return result
