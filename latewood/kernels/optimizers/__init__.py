"""One step of the optimizers: chooses who carries it out, parameter by parameter.

A device in this room is a fact about a tensor, not a choice of the caller: on the CPU the native
form walks all tensors in one pass, on a GPU the Triton form does, and plain torch does the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain

import torch
from torch import Tensor

from latewood.kernels.misfits import Misfit, memory_misfit
from latewood.kernels.optimizers import native_steps, triton_steps
from latewood.kernels.optimizers.fitting import TYPES
from latewood.kernels.optimizers.foreach_steps import step_foreach
from latewood.kernels.optimizers.reference_steps import (
    Number,
    Rates,
    Scalars,
    StepTensors,
    UpdateRule,
    rate_sum_reference,
    step_reference,
    working_dtype,
)
from latewood.kernels.optimizers.step_plan import (
    Carrier,
    Form,
    StepRequest,
    parameter_name,
    plan_step,
)
from latewood.kernels.optimizers.stochastic_rounding import noise_key

__all__ = [
    "Form",
    "Number",
    "Rates",
    "UpdateRule",
    "Scalars",
    "StepRequest",
    "StepTensors",
    "count_steps",
    "fused_exists",
    "noise_key",
    "plan_step",
    "rate_sums",
    "run_step",
    "working_dtype",
]


def run_step(
    rule: UpdateRule,
    requests: Sequence[StepRequest],
    scalars: Sequence[Sequence[Scalars]],
    rates: Rates = "none",
) -> list[list[Number]]:
    """Carries out one step, in place; all groups together, for the native and the Triton form.

    Args:
        rule: the update rule, see `latewood.kernels.optimizers.reference_steps.step_reference`.
        requests: one for every group of parameters.
        scalars: the numbers of every parameter, group by group.
        rates: which second moments a delayed step sums the squared rates of.

    Returns:
        One sum per parameter, group by group; zeros where ``rates`` is "none".

    Raises:
        RequestError: as `plan_step`, or a count that is none; nothing has changed.
    """
    # One call for everything lets the native form spread all tensors over the threads.
    parts = [request.tensors for request in requests]
    tensors = parts[0] if len(parts) == 1 else _joined(parts)
    numbers = list(chain.from_iterable(scalars))
    sums: list[Number] | None = None
    if all(request.form in ("auto", "fused") for request in requests):
        counts = list(chain.from_iterable(request.counts for request in requests))
        sums = native_steps.attempt_native(rule, tensors, numbers, rates, counts)
    if sums is None:
        sums = _step_by_plan(rule, requests, tensors, numbers, rates)
    by_group, start = [], 0
    for part in parts:
        by_group.append(sums[start : start + len(part.parameters)])
        start += len(part.parameters)
    return by_group


def _step_by_plan(
    rule: UpdateRule,
    requests: Sequence[StepRequest],
    tensors: StepTensors,
    numbers: list[Scalars],
    rates: Rates,
) -> list[Number]:
    plans = [plan_step(request.tensors, request.form, request.name) for request in requests]
    for request in requests:
        count_steps(request.counts, request.name)
    for request in requests:
        for count in request.counts:
            count.add_(1)
    carriers = list(chain.from_iterable(plan.carriers for plan in plans))
    sums: list[Number] = [0.0] * len(carriers)
    for carrier in dict.fromkeys(carriers):
        indices = [index for index, other in enumerate(carriers) if other == carrier]
        if len(indices) == len(carriers):
            return _CARRY[carrier](rule, tensors, numbers, rates)
        chosen = [numbers[index] for index in indices]
        totals = _CARRY[carrier](rule, tensors.select(indices), chosen, rates)
        for index, total in zip(indices, totals, strict=True):
            sums[index] = total
    return sums


_CARRY: dict[
    Carrier, Callable[[UpdateRule, StepTensors, Sequence[Scalars], Rates], list[Number]]
] = {
    "native": native_steps.step_native,
    "triton": triton_steps.step_triton,
    "foreach": step_foreach,
    "single": step_reference,
}


def _joined(parts: list[StepTensors]) -> StepTensors:
    lists = [(part.parameters, part.gradients, *part.moments()) for part in parts]
    columns = (list(chain.from_iterable(column)) for column in zip(*lists, strict=True))
    joined = StepTensors(*columns)
    if any(part.noise_keys for part in parts):
        joined.noise_keys = [key for part in parts for key in part.rounding_keys()]
    return joined


def count_steps(counts: list[Tensor], name: Callable[[int], str] = parameter_name) -> list[float]:
    """What counts of steps say.

    Args:
        counts: 0-dim float32 tensors on the CPU; others are read too, but slowly.
        name: what errors call the parameter of a count.

    Raises:
        RequestError: something that is not one real number.
    """
    said = native_steps.counts_native(counts)
    if said is not None:
        return said
    for index, count in enumerate(counts):
        if not isinstance(count, Tensor) or count.dim() != 0 or count.is_complex() or count.is_meta:
            misfit: Misfit | None = Misfit("value", count, "a 0-dim tensor that counts steps")
        else:
            misfit = memory_misfit(count)
        if misfit is not None:
            raise misfit.error(f"state of {name(index)} ('step')")
    return [float(count.item()) for count in counts]


def rate_sums(
    moments: list[Tensor], corrections: list[Number], eps: list[float], form: Form = "auto"
) -> list[Number]:
    r"""Sum of squared rates of each tensor, rounded as `run_step` rounds them.

    .. math:: \sum_i \frac{1}{(\sqrt{v_i} \, c + \epsilon)^2}

    Args:
        moments: second moments v, any shapes, also empty.
        corrections: c, 1/sqrt of the bias correction of each.
        eps: of each, positive.
        form: as in `plan_step`.

    Returns:
        One sum per tensor: a float from the native form, else a 0-dim float64 tensor.
    """
    if form in ("auto", "fused"):
        fast = native_steps.rate_sums_native(moments, corrections, eps)
        if fast is None:
            fast = triton_steps.rate_sums_triton(moments, corrections, eps)
        if fast is not None:
            return fast
    return list(map(rate_sum_reference, moments, corrections, eps))


def fused_exists(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether there is a fused form for a device and precision.

    On the CPU there is, even where the native kernels are not built: plain torch stands in.
    """
    if device.type == "cpu":
        return dtype in TYPES
    return triton_steps.exists(device, dtype)
