"""The update rules on the CPU: all tensors in one call, one pass over memory, any thread count."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from latewood.kernels.dispatch import native
from latewood.kernels.optimizers.reference_steps import (
    Number,
    Rates,
    Rule,
    StepTensors,
    working_dtype,
)

__all__ = ["accepted", "advance_native", "knows", "rate_sums_native", "step_native"]

_RULES = {"momentum": 0, "delayed": 1, "bounded": 2}
_RATES = {"none": 0, "old": 1, "new": 2}
_TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
_PLAIN = (Tensor, Parameter)
_dtype, _on_cpu = operator.attrgetter("dtype"), operator.attrgetter("is_cpu")


def knows(dtype: torch.dtype) -> bool:
    """Whether the native form is written for parameters of this precision."""
    return dtype in _TYPES


def accepted(entries: Sequence[StepTensors]) -> list[int]:
    """Indices of the entries whose memory the native form can work on: dense, and really there."""
    # Shares are many and small next to a call: what holds for all of them is asked once.
    if native() is None or is_in_torch_dispatch_mode():
        return []
    if _accepts_all(entries):
        return list(range(len(entries)))
    return [index for index, entry in enumerate(entries) if _accepts(entry)]


def _accepts_all(entries: Sequence[StepTensors]) -> bool:
    """Whether all are of the common kind; quick, since a step of small tensors is mostly this."""
    parameters = [entry.parameter for entry in entries]
    moments = [m for entry in entries for m in _moments(entry) if m is not None]
    return (
        set(map(type, parameters)).issubset(_PLAIN)
        and {type(entry.gradient) for entry in entries} == {Tensor}
        and _TYPES.keys() >= set(map(_dtype, parameters))
        and all(map(_on_cpu, parameters))
        and all(map(Tensor.is_contiguous, parameters))
        and all(map(Tensor.is_contiguous, moments))
    )


def _accepts(entry: StepTensors) -> bool:
    parameter = entry.parameter
    if (
        parameter.dtype not in _TYPES
        or not parameter.is_cpu
        or type(parameter) not in _PLAIN
        or type(entry.gradient) is not Tensor
        or not _dense(parameter)
    ):
        return False
    if entry.exp_avg is None:
        return True
    if parameter.is_contiguous():
        return all(m is None or m.is_contiguous() for m in _moments(entry))
    strides = parameter.stride()
    return all(m is None or m.stride() == strides for m in _moments(entry))


def advance_native(steps: Sequence[Tensor]) -> list[float] | None:
    """Adds 1 to each step count and returns the counts; None if it cannot.

    Args:
        steps: 0-dim float32 tensors.
    """
    module = native()
    if module is None or not all(s.is_cpu and s.dtype == torch.float32 for s in steps):
        return None
    counts: list[float] = module.optim_advance([step.data_ptr() for step in steps])
    return counts


def step_native(rule: Rule, entries: list[StepTensors], rates: Rates = "none") -> list[Number]:
    """`step_reference` of every entry in one pass, in place; see there.

    Args:
        rule: the update rule.
        entries: those that `accepted` names.
        rates: which second moments a delayed step sums the squared rates of.

    Returns:
        One sum per entry, float64 over blocks of 1024 elements in the parameter's working
        precision, in an order that does not depend on the number of threads.
    """
    sums: list[Number] = [0.0] * len(entries)
    dtypes = [entry.parameter.dtype for entry in entries]
    for dtype in dict.fromkeys(dtypes):
        indices = [index for index, of_entry in enumerate(dtypes) if of_entry is dtype]
        totals = _step(rule, [entries[index] for index in indices], dtype, rates)
        for index, total in zip(indices, totals, strict=True):
            sums[index] = total
    return sums


def _step(rule: Rule, entries: list[StepTensors], dtype: torch.dtype, rates: Rates) -> list[float]:
    module = native()
    assert module is not None
    parameters = [entry.parameter for entry in entries]
    # A copied gradient lives until the kernel has read it.
    gradients = _alike([entry.gradient for entry in entries], parameters, dtype)
    # Shares with the same history have the same object.
    scalars = {id(entry.scalars): entry.scalars for entry in entries}
    rows = {key: row for row, key in enumerate(scalars)}
    columns = (
        map(Tensor.data_ptr, parameters),
        map(Tensor.data_ptr, gradients),
        *(_addresses(column) for column in zip(*map(_moments, entries), strict=True)),
        [rows[id(entry.scalars)] for entry in entries],
    )
    sums: list[float] = module.optim_step(
        _RULES[rule],
        _TYPES[dtype],
        _RATES[rates],
        list(chain.from_iterable(zip(*columns, strict=True))),
        list(map(Tensor.numel, parameters)),
        [float(number) for numbers in scalars.values() for number in numbers],
        torch.get_num_threads(),
    )
    # Autograd must notice, as it does when torch itself writes in place.
    torch.autograd.graph.increment_version(parameters)
    return sums


def _addresses(moments: Sequence[Tensor | None]) -> list[int]:
    return [0 if moment is None else moment.data_ptr() for moment in moments]


def rate_sums_native(
    moments: Sequence[Tensor], corrections: Sequence[Number], eps: Sequence[float]
) -> list[Number] | None:
    """`rate_sum_reference` of every tensor, rounded as `step_native` rounds; None if it cannot.

    Args:
        moments: second moments.
        corrections: 1/sqrt of the bias correction of each.
        eps: of each.
    """
    sums: list[Number] = [0.0] * len(moments)
    for dtype in dict.fromkeys(moment.dtype for moment in moments):
        indices = [i for i, moment in enumerate(moments) if moment.dtype == dtype]
        chosen = [moments[index] for index in indices]
        module = native()
        if module is None or dtype not in _TYPES:
            return None
        if not all(moment.is_cpu and _dense(moment) for moment in chosen):
            return None
        totals = module.optim_rate_sums(
            _TYPES[working_dtype(chosen[0])],
            [moment.data_ptr() for moment in chosen],
            [moment.numel() for moment in chosen],
            [float(corrections[index]) for index in indices],
            [float(eps[index]) for index in indices],
            torch.get_num_threads(),
        )
        for index, total in zip(indices, totals, strict=True):
            sums[index] = total
    return sums


def _dense(tensor: Tensor) -> bool:
    return tensor.is_contiguous() or torch.ops.aten.is_non_overlapping_and_dense.default(tensor)


def _alike(gradients: list[Tensor], parameters: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The gradients in the precision and layout of the parameters, copied where they must be."""
    if set(map(_dtype, gradients)) == {dtype} and all(
        map(Tensor.is_contiguous, chain(gradients, parameters))
    ):
        return gradients
    return list(map(_like, gradients, parameters))


def _like(gradient: Tensor, parameter: Tensor) -> Tensor:
    alike = gradient.is_contiguous() and parameter.is_contiguous()
    if gradient.dtype == parameter.dtype and (alike or gradient.stride() == parameter.stride()):
        return gradient
    return torch.empty_like(parameter, requires_grad=False).copy_(gradient)


def _moments(entry: StepTensors) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    return entry.exp_avg, entry.exp_avg_sq, entry.max_exp_avg_sq
