"""Whether the fused forms can work on the memory of what belongs to one parameter."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import torch
from torch import Tensor

from latewood.kernels.dispatch import native, tensors_are_virtual
from latewood.kernels.misfits import is_covered, is_plain, require_memory
from latewood.kernels.optimizers.reference_steps import StepTensors, working_dtype

__all__ = ["TYPES", "Fit", "fit_reference", "fits", "gradient_like", "has_own_memory"]

TYPES = frozenset((torch.float32, torch.float64, torch.bfloat16, torch.float16))
"""Precisions of parameters that the fused forms are written for."""

_READABLE = TYPES | {torch.int64, torch.bool}


class Fit(IntEnum):
    """How an entry fits; the native module counts alike."""

    FULLY = 0
    BUT_GRADIENT = 1
    NOT_AT_ALL = 2


def fits(tensors: StepTensors) -> list[int] | None:
    """How each entry fits a fused form: a `Fit` each.

    Returns:
        None where all fit fully and lie on the CPU, the common case.
    """
    if tensors_are_virtual():
        return [Fit.NOT_AT_ALL] * len(tensors.parameters)
    module = native()
    if module is not None:
        codes = module.optim_fits((tensors.parameters, tensors.gradients, *tensors.moments()))
        return codes or None
    rows = zip(tensors.parameters, tensors.gradients, *tensors.moments(), strict=True)
    return [fit_reference(parameter, gradient, moments) for parameter, gradient, *moments in rows]


def fit_reference(parameter: Tensor, gradient: Tensor, moments: Sequence[Tensor | None]) -> Fit:
    """How one entry fits, found with plain torch; the oracle of the native look.

    Args:
        parameter: of any kind, as all others.
        gradient: it fits if a copy in the parameter's layout does.
        moments: those that there are have the working precision and the parameter's layout.
    """
    if not has_own_memory(parameter) or parameter.dtype not in TYPES:
        return Fit.NOT_AT_ALL
    wide = working_dtype(parameter.dtype)
    for moment in moments:
        if moment is not None and not (
            has_own_memory(moment)
            and moment.dtype == wide
            and _alike(moment, parameter)
            and _same_layout(moment, parameter)
        ):
            return Fit.NOT_AT_ALL
    if not has_own_memory(gradient):
        return Fit.BUT_GRADIENT
    if gradient.dtype != parameter.dtype or not _alike(gradient, parameter):
        return Fit.NOT_AT_ALL
    return Fit.FULLY if _same_layout(gradient, parameter) else Fit.BUT_GRADIENT


def has_own_memory(tensor: object) -> bool:
    """Whether a tensor is plain, and its elements lie in memory without gaps, as they are."""
    return (
        isinstance(tensor, Tensor)
        and is_plain(tensor)
        and tensor.layout is torch.strided
        and not tensor.is_meta
        and tensor.dtype in _READABLE
        and not tensor.is_neg()
        and (tensor.numel() < 2 or torch.ops.aten.is_non_overlapping_and_dense.default(tensor))
        and is_covered(tensor)
    )


def _alike(tensor: Tensor, parameter: Tensor) -> bool:
    return tensor.shape == parameter.shape and tensor.device == parameter.device


def _same_layout(tensor: Tensor, parameter: Tensor) -> bool:
    axes = zip(parameter.shape, tensor.stride(), parameter.stride(), strict=True)
    return parameter.numel() < 2 or all(n < 2 or a == b for n, a, b in axes)


def gradient_like(gradient: Tensor, parameter: Tensor) -> Tensor:
    """The gradient as plain memory in the layout of its parameter, copied where it must be.

    Raises:
        ValueError: it has another shape, or its elements do not lie in memory.
    """
    if gradient.shape != parameter.shape:
        raise ValueError("a gradient has another shape than its parameter")
    if has_own_memory(gradient) and _same_layout(gradient, parameter):
        return gradient
    # To copy it is to read it, and torch does not look.
    require_memory(gradient=gradient)
    copied = torch.empty_like(parameter, requires_grad=False)
    copied.copy_(gradient)
    return copied
