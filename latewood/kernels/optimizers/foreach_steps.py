"""The update rules as operations on lists of tensors: few launches on any device torch knows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from latewood.kernels.optimizers.reference_steps import (
    Number,
    Rates,
    Scalars,
    StepTensors,
    UpdateRule,
    working_dtype,
)
from latewood.kernels.optimizers.stochastic_rounding import round_with_noise

__all__ = ["step_foreach"]


def step_foreach(
    rule: UpdateRule, tensors: StepTensors, scalars: Sequence[Scalars], rates: Rates = "none"
) -> list[Number]:
    """`step_reference` of every parameter, in place; see there.

    Args:
        rule: the update rule.
        tensors: those that share device, precision, moments and numbers run together.
        scalars: the numbers of each parameter.
        rates: which second moments a delayed step sums the squared rates of.

    Returns:
        One sum per parameter; zeros where ``rates`` is "none".
    """
    sums: list[Number] = [0.0] * len(scalars)
    for indices in _alike(tensors, scalars):
        totals = _step(rule, tensors.select(indices), scalars[indices[0]], rates)
        for index, total in zip(indices, totals, strict=True):
            sums[index] = total
    return sums


def _alike(tensors: StepTensors, scalars: Sequence[Scalars]) -> list[list[int]]:
    buckets: dict[object, list[int]] = {}
    columns = (tensors.parameters, *tensors.moments(), scalars)
    for index, (stored, *moments, numbers) in enumerate(zip(*columns, strict=True)):
        absent = [moment is None for moment in moments]
        # By identity: two tensors among the numbers cannot be compared without waiting for them.
        key = (stored.device, stored.dtype, *absent, id(numbers))
        buckets.setdefault(key, []).append(index)
    return list(buckets.values())


def _step(rule: UpdateRule, tensors: StepTensors, numbers: Scalars, rates: Rates) -> list[Number]:
    stored = tensors.parameters
    dtype = working_dtype(stored[0].dtype)
    parameters = [parameter.to(dtype) for parameter in stored]
    gradients = [gradient.to(dtype) for gradient in tensors.gradients]
    gradients = _gradients(numbers, parameters, gradients)
    first, second, peaks = map(_present, tensors.moments())
    sums: list[Number] = [0.0] * len(stored)
    if rule == "momentum":
        _momentum(numbers, parameters, gradients, first)
    elif rule == "delayed":
        sums = _delayed(numbers, parameters, gradients, first, second, rates)
    else:
        _bounded(numbers, parameters, gradients, first, second, peaks)
    if dtype != stored[0].dtype:
        parameters = [
            parameter if key is None else round_with_noise(parameter, key)
            for parameter, key in zip(parameters, tensors.rounding_keys(), strict=True)
        ]
        torch._foreach_copy_(stored, parameters)
    return sums


def _gradients(numbers: Scalars, parameters: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
    if numbers.factor != 1.0:
        gradients = list(torch._foreach_mul(gradients, numbers.factor))
    if numbers.l2 != 0.0:
        gradients = list(torch._foreach_add(gradients, parameters, alpha=numbers.l2))
    return gradients


def _average(moments: list[Tensor], values: list[Tensor], decay: float) -> None:
    torch._foreach_mul_(moments, decay)
    torch._foreach_add_(moments, values, alpha=1.0 - decay)


def _average_squares(moments: list[Tensor], values: list[Tensor], decay: float) -> None:
    torch._foreach_mul_(moments, decay)
    torch._foreach_addcmul_(moments, values, values, 1.0 - decay)


def _move(numbers: Scalars, parameters: list[Tensor], updates: list[Tensor]) -> None:
    if isinstance(numbers.keep, Tensor) or numbers.keep != 1.0:
        torch._foreach_mul_(parameters, numbers.keep)
    torch._foreach_sub_(parameters, updates)


def _momentum(
    numbers: Scalars, parameters: list[Tensor], gradients: list[Tensor], first: list[Tensor]
) -> None:
    directions = gradients
    if first:
        directions = first
        _average(directions, gradients, numbers.beta1)
    _move(numbers, parameters, list(torch._foreach_mul(directions, numbers.size)))


def _delayed(
    numbers: Scalars,
    parameters: list[Tensor],
    gradients: list[Tensor],
    first: list[Tensor],
    second: list[Tensor],
    rates: Rates,
) -> list[Number]:
    _average(first, gradients, numbers.beta1)
    roots = list(torch._foreach_sqrt(second))
    if isinstance(numbers.size, Tensor) or numbers.size != 0.0:
        denominators = list(torch._foreach_mul(roots, numbers.previous))
        torch._foreach_add_(denominators, numbers.eps)
        updates = list(torch._foreach_div(first, denominators))
        torch._foreach_mul_(updates, numbers.size)
        _move(numbers, parameters, updates)
    _average_squares(second, gradients, numbers.beta2)
    if rates == "none":
        return [0.0] * len(parameters)
    if rates == "new":
        roots = list(torch._foreach_sqrt(second))
    torch._foreach_mul_(roots, numbers.following)
    torch._foreach_add_(roots, numbers.eps)
    torch._foreach_reciprocal_(roots)
    torch._foreach_mul_(roots, roots)
    return [squares.sum().double() for squares in roots]


def _bounded(
    numbers: Scalars,
    parameters: list[Tensor],
    gradients: list[Tensor],
    first: list[Tensor],
    second: list[Tensor],
    peaks: list[Tensor],
) -> None:
    _average(first, gradients, numbers.beta1)
    _average_squares(second, gradients, numbers.beta2)
    if peaks:
        torch._foreach_maximum_(peaks, second)
        second = peaks
    sizes = list(torch._foreach_sqrt(second))
    torch._foreach_add_(sizes, numbers.eps)
    torch._foreach_reciprocal_(sizes)
    torch._foreach_mul_(sizes, numbers.size)
    if isinstance(numbers.lower, Tensor) or isinstance(numbers.upper, Tensor):
        # Scalars of these two operations have to be plain numbers.
        sizes = [size.clamp(numbers.lower, numbers.upper) for size in sizes]  # type: ignore[arg-type]
    else:
        torch._foreach_clamp_min_(sizes, numbers.lower)
        torch._foreach_clamp_max_(sizes, numbers.upper)
    torch._foreach_mul_(sizes, first)
    _move(numbers, parameters, sizes)


def _present(moments: Iterable[Tensor | None]) -> list[Tensor]:
    return [moment for moment in moments if moment is not None]
