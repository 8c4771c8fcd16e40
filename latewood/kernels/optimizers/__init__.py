"""One step of the optimizers: chooses who carries it out, tensor by tensor.

A device in this room is a fact about a tensor, not a choice of the caller: on the CPU the native
form walks all tensors in one pass, on a GPU the Triton form does, and plain torch does the rest.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from latewood.kernels.optimizers import native_steps, triton_steps
from latewood.kernels.optimizers.foreach_steps import step_foreach
from latewood.kernels.optimizers.reference_steps import (
    Number,
    Rates,
    Rule,
    Scalars,
    StepTensors,
    rate_sum_reference,
    step_reference,
    working_dtype,
)

__all__ = [
    "Form",
    "Number",
    "Rates",
    "Rule",
    "Scalars",
    "StepTensors",
    "advance",
    "fused_exists",
    "rate_sums",
    "run_step",
    "working_dtype",
]

Form = Literal["auto", "single", "foreach", "fused"]


def run_step(
    rule: Rule, entries: list[StepTensors], rates: Rates = "none", form: Form = "auto"
) -> list[Number]:
    """Carries out one step, in place.

    Args:
        rule: the update rule, see `latewood.kernels.optimizers.reference_steps.step_reference`.
        entries: one per tensor.
        rates: which second moments a delayed step sums the squared rates of.
        form: "auto" takes the fastest form that each tensor allows; "fused" does too, but falls
            back on single tensors; "single" and "foreach" are plain torch.

    Returns:
        One sum per entry; zeros where ``rates`` is "none".
    """
    sums: list[Number] = [0.0] * len(entries)
    left = list(range(len(entries)))
    if form in ("auto", "fused"):
        for accepted, run in (
            (native_steps.accepted, native_steps.step_native),
            (triton_steps.accepted, triton_steps.step_triton),
        ):
            taken = [left[index] for index in accepted([entries[index] for index in left])]
            if not taken:
                continue
            results = run(rule, [entries[index] for index in taken], rates)
            for index, result in zip(taken, results, strict=True):
                sums[index] = result
            left = sorted(set(left) - set(taken))
    results = _portable(rule, [entries[index] for index in left], rates, form)
    for index, result in zip(left, results, strict=True):
        sums[index] = result
    return sums


def _portable(rule: Rule, entries: list[StepTensors], rates: Rates, form: Form) -> list[Number]:
    # Lists pay where launches cost: on the CPU they only add passes over memory.
    if form == "foreach" or (form == "auto" and entries and entries[0].parameter.is_cuda):
        return step_foreach(rule, entries, rates)
    return [step_reference(rule, entry, rates) for entry in entries]


def advance(steps: list[Tensor]) -> list[float]:
    """Adds 1 to each step count, a 0-dim float32 tensor on the CPU, and returns the counts."""
    counts = native_steps.advance_native(steps)
    if counts is None:
        torch._foreach_add_(steps, torch.ones(()), alpha=1.0)
        counts = [step.item() for step in steps]
    return counts


def rate_sums(
    moments: list[Tensor], corrections: list[Number], eps: list[float], form: Form = "auto"
) -> list[Number]:
    r"""Sum of squared rates of each tensor, rounded as `run_step` rounds them.

    .. math:: \sum_i \frac{1}{(\sqrt{v_i} \, c + \epsilon)^2}

    Args:
        moments: second moments v, any shapes, also empty.
        corrections: c, 1/sqrt of the bias correction of each.
        eps: of each, positive.
        form: as in `run_step`.

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
        return native_steps.knows(dtype)
    return triton_steps.exists(device, dtype)
