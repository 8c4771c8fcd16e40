"""The masked weight of continuous sparsification and the sum of its mask, with their gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from latewood.errors import invalid
from latewood.kernels.dispatch import native, native_for

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
        RequestError: if the shapes differ.

    Source: Savarese, Silva, Maire, "Winning the Lottery with Continuous Sparsification" (2020).
    """
    if weight.shape != logits.shape:
        raise invalid("logits", tuple(logits.shape), f"the weight's shape {tuple(weight.shape)}")
    if temperature.requires_grad or native_for(weight, logits) is None:
        return masked_weight_reference(weight, logits, temperature, scale)
    result: Tensor = _MaskedWeight.apply(weight, logits, temperature, scale)
    return result


def masked_weight_reference(
    weight: Tensor, logits: Tensor, temperature: Tensor, scale: float
) -> Tensor:
    """``masked_weight`` in plain torch: the oracle, on any device and in any float dtype."""
    return (weight * (scale * torch.sigmoid(temperature * logits))).to(weight.dtype)


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
    if temperature.requires_grad or native_for(logits) is None:
        return mask_sum_reference(logits, temperature, scale)
    result: Tensor = _MaskSum.apply(logits, temperature, scale)
    return result


def mask_sum_reference(logits: Tensor, temperature: Tensor, scale: float) -> Tensor:
    """``mask_sum`` in plain torch: the oracle, on any device and in any float dtype."""
    return scale * torch.sigmoid(temperature * logits).sum()


def _mask_slope(logits: Tensor, temperature: Tensor, scale: float) -> Tensor:
    """Derivative of the mask in its logits, differentiable again."""
    p = torch.sigmoid(temperature * logits)
    return scale * temperature * p * (1 - p)


class _MaskedWeight(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, logits: Tensor, temperature: Tensor, scale: float
    ) -> Tensor:
        ctx.save_for_backward(weight, logits, temperature)
        ctx.scale = scale
        masked = torch.empty_like(weight)
        _compiled().masked_weight_forward(
            weight.data_ptr(),
            logits.data_ptr(),
            temperature.item(),
            scale,
            masked.data_ptr(),
            weight.numel(),
            torch.get_num_threads(),
        )
        return masked

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, logits, temperature = ctx.saved_tensors
        # Gradients are wanted of this backward, or it is traced: only plain torch offers that.
        if torch.is_grad_enabled() or native_for(weight, logits) is None:
            mask = ctx.scale * torch.sigmoid(temperature * logits)
            slope = _mask_slope(logits, temperature, ctx.scale)
            return gradient * mask, gradient * weight * slope, None, None
        if native_for(weight, gradient) is None:
            gradient = torch.empty_like(weight).copy_(gradient)
        weight_gradient = torch.empty_like(weight)
        logits_gradient = torch.empty_like(weight)
        _compiled().masked_weight_backward(
            gradient.data_ptr(),
            weight.data_ptr(),
            logits.data_ptr(),
            temperature.item(),
            ctx.scale,
            weight_gradient.data_ptr(),
            logits_gradient.data_ptr(),
            weight.numel(),
            torch.get_num_threads(),
        )
        return weight_gradient, logits_gradient, None, None


class _MaskSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, temperature: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(logits, temperature)
        ctx.scale = scale
        total = _compiled().mask_sum_forward(
            logits.data_ptr(),
            temperature.item(),
            scale,
            logits.numel(),
            torch.get_num_threads(),
        )
        return logits.new_tensor(total)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        logits, temperature = ctx.saved_tensors
        if torch.is_grad_enabled() or native_for(logits) is None:
            return gradient * _mask_slope(logits, temperature, ctx.scale), None, None
        logits_gradient = torch.empty_like(logits)
        _compiled().mask_sum_backward(
            gradient.item(),
            logits.data_ptr(),
            temperature.item(),
            ctx.scale,
            logits_gradient.data_ptr(),
            logits.numel(),
            torch.get_num_threads(),
        )
        return logits_gradient, None, None


def _compiled() -> Any:
    return native()
