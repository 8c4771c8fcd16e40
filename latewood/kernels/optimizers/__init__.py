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
from latewood.kernels.optimizers.stochastic_rounding import noise_key
from latewood.kernels.optimizers.step_plan import Carrier, Form, StepPlan, parameter_name, plan_step

__all__ = [
    "Form",
    "Number",
    "Rates",
    "UpdateRule",
    "Scalars",
    "StepPlan",
    "StepTensors",
    "advance",
    "fused_exists",
    "noise_key",
    "plan_step",
    "rate_sums",
    "run_step",
    "working_dtype",
]


def run_step(
    rule: UpdateRule,
    plans: Sequence[StepPlan],
    scalars: Sequence[Sequence[Scalars]],
    rates: Rates = "none",
) -> list[list[Number]]:
    """Carries out one step, in place; all plans together, for the native form and the Triton form.

    Args:
        rule: the update rule, see `latewood.kernels.optimizers.reference_steps.step_reference`.
        plans: of `plan_step`, made for this step; one for every group of parameters.
        scalars: the numbers of every parameter, plan by plan.
        rates: which second moments a delayed step sums the squared rates of.

    Returns:
        One sum per parameter, plan by plan; zeros where ``rates`` is "none".
    """
    # One call for everything lets the native form spread all tensors over the threads.
    tensors = plans[0].tensors if len(plans) == 1 else _joined([plan.tensors for plan in plans])
    numbers = list(chain.from_iterable(scalars))
    carriers = list(chain.from_iterable(plan.carriers for plan in plans))
    sums: list[Number] = [0.0] * len(carriers)
    for carrier in dict.fromkeys(carriers):
        indices = [index for index, other in enumerate(carriers) if other == carrier]
        if len(indices) == len(carriers):
            sums = _CARRY[carrier](rule, tensors, numbers, rates)
            break
        chosen = [numbers[index] for index in indices]
        totals = _CARRY[carrier](rule, tensors.select(indices), chosen, rates)
        for index, total in zip(indices, totals, strict=True):
            sums[index] = total
    by_plan, start = [], 0
    for plan in plans:
        by_plan.append(sums[start : start + len(plan.carriers)])
        start += len(plan.carriers)
    return by_plan


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
    return StepTensors(*(list(chain.from_iterable(column)) for column in zip(*lists, strict=True)))


def advance(steps: list[Tensor], name: Callable[[int], str] = parameter_name) -> list[float]:
    """Adds 1 to each step count and returns the counts.

    Args:
        steps: 0-dim float32 tensors on the CPU; others are counted too, but slowly.
        name: what errors call the parameter of a count.

    Raises:
        RequestError: something that is not one real number; nothing was counted.
    """
    counts = native_steps.advance_native(steps)
    if counts is not None:
        return counts
    for index, step in enumerate(steps):
        if not isinstance(step, Tensor) or step.dim() != 0 or step.is_complex() or step.is_meta:
            misfit: Misfit | None = Misfit("value", step, "a 0-dim tensor that counts steps")
        else:
            misfit = memory_misfit(step)
        if misfit is not None:
            raise misfit.error(f"state of {name(index)} ('step')")
    return [step.add_(1.0).item() for step in steps]


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
