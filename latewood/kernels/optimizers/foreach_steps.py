"""The update rules as operations on lists of tensors: few launches on any device torch knows."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from latewood.kernels.optimizers.reference_steps import (
    Number,
    Rates,
    Rule,
    Scalars,
    StepTensors,
    working_dtype,
)

__all__ = ["step_foreach"]


def step_foreach(rule: Rule, entries: list[StepTensors], rates: Rates = "none") -> list[Number]:
    """`step_reference` of every entry, in place; see there.

    Args:
        rule: the update rule.
        entries: one per tensor; those that share device, precision and numbers run together.
        rates: which second moments a delayed step sums the squared rates of.

    Returns:
        One sum per entry; zeros where ``rates`` is "none".
    """
    sums: list[Number] = [0.0] * len(entries)
    for indices in _alike(entries):
        members = [entries[index] for index in indices]
        for index, total in zip(indices, _step(rule, members, rates), strict=True):
            sums[index] = total
    return sums


def _alike(entries: list[StepTensors]) -> list[list[int]]:
    buckets: dict[object, list[int]] = {}
    for index, entry in enumerate(entries):
        stored, moment = entry.parameter, entry.exp_avg
        # By identity: two tensors among the numbers cannot be compared without waiting for them.
        key = (stored.device, stored.dtype, moment is None, id(entry.scalars))
        buckets.setdefault(key, []).append(index)
    return list(buckets.values())


def _step(rule: Rule, entries: list[StepTensors], rates: Rates) -> list[Number]:
    numbers = entries[0].scalars
    stored = [entry.parameter for entry in entries]
    dtype = working_dtype(stored[0])
    parameters = [parameter.to(dtype) for parameter in stored]
    gradients = _gradients(numbers, parameters, [entry.gradient.to(dtype) for entry in entries])
    sums: list[Number] = [0.0] * len(entries)
    if rule == "momentum":
        _momentum(numbers, entries, parameters, gradients)
    elif rule == "delayed":
        sums = _delayed(numbers, entries, parameters, gradients, rates)
    else:
        _bounded(numbers, entries, parameters, gradients)
    if dtype != stored[0].dtype:
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
    numbers: Scalars, entries: list[StepTensors], parameters: list[Tensor], gradients: list[Tensor]
) -> None:
    directions = gradients
    if entries[0].exp_avg is not None:
        directions = _present(entry.exp_avg for entry in entries)
        _average(directions, gradients, numbers.beta1)
    _move(numbers, parameters, list(torch._foreach_mul(directions, numbers.size)))


def _delayed(
    numbers: Scalars,
    entries: list[StepTensors],
    parameters: list[Tensor],
    gradients: list[Tensor],
    rates: Rates,
) -> list[Number]:
    first = _present(entry.exp_avg for entry in entries)
    second = _present(entry.exp_avg_sq for entry in entries)
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
        return [0.0] * len(entries)
    if rates == "new":
        roots = list(torch._foreach_sqrt(second))
    torch._foreach_mul_(roots, numbers.following)
    torch._foreach_add_(roots, numbers.eps)
    torch._foreach_reciprocal_(roots)
    torch._foreach_mul_(roots, roots)
    return [squares.sum().double() for squares in roots]


def _bounded(
    numbers: Scalars, entries: list[StepTensors], parameters: list[Tensor], gradients: list[Tensor]
) -> None:
    first = _present(entry.exp_avg for entry in entries)
    second = _present(entry.exp_avg_sq for entry in entries)
    _average(first, gradients, numbers.beta1)
    _average_squares(second, gradients, numbers.beta2)
    if entries[0].max_exp_avg_sq is not None:
        peaks = _present(entry.max_exp_avg_sq for entry in entries)
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
