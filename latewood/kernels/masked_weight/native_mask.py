"""The masked weight and the sum of its mask on the CPU, with their gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from latewood.kernels.dispatch import native, native_for
from latewood.kernels.masked_weight.reference_mask import mask_slope
from latewood.kernels.misfits import has_memory, is_plain, require_memory

__all__ = ["MaskSum", "MaskedWeight", "is_plain_number"]


def is_plain_number(temperature: Tensor) -> bool:
    """Whether a temperature is one number that needs no gradient."""
    return not temperature.requires_grad and temperature.dim() == 0 and is_plain(temperature)


class MaskedWeight(torch.autograd.Function):
    """`masked_weight_reference` of tensors that `native_for` accepts."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, logits: Tensor, temperature: Tensor, scale: float
    ) -> Tensor:
        ctx.save_for_backward(weight, logits, temperature)
        ctx.scale = scale
        masked = torch.empty_like(weight)
        _compiled().masked_weight_forward(
            weight,
            logits,
            temperature.item(),
            scale,
            masked,
            torch.get_num_threads(),
        )
        return masked

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, logits, temperature = ctx.saved_tensors
        # Gradients are wanted of this backward, or it is traced, or somebody replaced the data of
        # a saved tensor, or the gradient is sparse or a batch: only plain torch deals with that.
        if (
            torch.is_grad_enabled()
            or gradient.shape != weight.shape
            or not has_memory(gradient)
            or native_for(weight, logits) is None
        ):
            require_memory(weight=weight, logits=logits)
            mask = ctx.scale * torch.sigmoid(temperature * logits)
            slope = mask_slope(logits, temperature, ctx.scale)
            return gradient * mask, gradient * weight * slope, None, None
        if native_for(weight, gradient) is None:
            gradient = torch.empty_like(weight).copy_(gradient)
        weight_gradient = torch.empty_like(weight)
        logits_gradient = torch.empty_like(weight)
        _compiled().masked_weight_backward(
            gradient,
            weight,
            logits,
            temperature.item(),
            ctx.scale,
            weight_gradient,
            logits_gradient,
            torch.get_num_threads(),
        )
        return weight_gradient, logits_gradient, None, None


class MaskSum(torch.autograd.Function):
    """`mask_sum_reference` of a tensor that `native_for` accepts."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, temperature: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(logits, temperature)
        ctx.scale = scale
        total = _compiled().mask_sum_forward(
            logits, temperature.item(), scale, torch.get_num_threads()
        )
        return logits.new_tensor(total)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        logits, temperature = ctx.saved_tensors
        if torch.is_grad_enabled() or not has_memory(gradient) or native_for(logits) is None:
            require_memory(logits=logits)
            return gradient * mask_slope(logits, temperature, ctx.scale), None, None
        logits_gradient = torch.empty_like(logits)
        _compiled().mask_sum_backward(
            gradient.item(),
            logits,
            temperature.item(),
            ctx.scale,
            logits_gradient,
            torch.get_num_threads(),
        )
        return logits_gradient, None, None


def _compiled() -> Any:
    return native()
