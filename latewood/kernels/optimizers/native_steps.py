"""The update rules on the CPU: all tensors in one call, one pass over memory, any thread count."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from latewood.kernels.dispatch import native, tensors_are_virtual
from latewood.kernels.optimizers.fitting import gradient_like
from latewood.kernels.optimizers.reference_steps import (
    Number,
    Rates,
    Scalars,
    StepTensors,
    UpdateRule,
)

__all__ = [
    "attempt_native",
    "counts_native",
    "exists",
    "rate_sums_native",
    "step_native",
]

_RULES = {"momentum": 0, "delayed": 1, "bounded": 2}
_RATES = {"none": 0, "old": 1, "new": 2}


def exists() -> bool:
    """Whether the native form can run now at all."""
    return not tensors_are_virtual() and native() is not None


def counts_native(steps: list[Tensor]) -> list[float] | None:
    """What counts of steps say; None if it cannot read them.

    Args:
        steps: 0-dim float32 tensors.
    """
    module = None if tensors_are_virtual() else native()
    if module is None:
        return None
    counts: list[float] | None = module.optim_counts(steps)
    return counts


def attempt_native(
    rule: UpdateRule,
    tensors: StepTensors,
    scalars: Sequence[Scalars],
    rates: Rates,
    steps: list[Tensor],
) -> list[Number] | None:
    """`step_native` that also counts the steps, or None if something is not as it needs it.

    Nothing has changed then.
    """
    if not exists():
        return None
    try:
        return _call(rule, tensors, tensors.gradients, scalars, rates, steps)
    except ValueError:
        return None


def step_native(
    rule: UpdateRule, tensors: StepTensors, scalars: Sequence[Scalars], rates: Rates = "none"
) -> list[Number]:
    """`step_reference` of every parameter in one pass, in place; see there.

    Args:
        rule: the update rule.
        tensors: those that `latewood.kernels.optimizers.plan_step` leaves to the native form.
        scalars: the numbers of each parameter.
        rates: which second moments a delayed step sums the squared rates of.

    Returns:
        One sum per parameter, float64 over blocks of 1024 elements in the parameter's working
        precision, in an order that does not depend on the number of threads.

    Raises:
        ValueError: an entry that does not fit; nothing was written.
    """
    sums = _call(rule, tensors, tensors.gradients, scalars, rates, [])
    if sums is None:
        gradients = list(map(gradient_like, tensors.gradients, tensors.parameters))
        sums = _call(rule, tensors, gradients, scalars, rates, [])
    if sums is None:
        raise ValueError("a gradient does not fit its parameter")
    return sums


def _call(
    rule: UpdateRule,
    tensors: StepTensors,
    gradients: list[Tensor],
    scalars: Sequence[Scalars],
    rates: Rates,
    steps: list[Tensor],
) -> list[Number] | None:
    module = native()
    assert module is not None
    # Parameters with the same history have the same object.
    identities = list(map(id, scalars))
    distinct = dict(zip(identities, scalars, strict=True))
    rows = {key: row for row, key in enumerate(distinct)}
    keys = tensors.rounding_keys() if tensors.noise_keys else []
    sums: list[Number] | None = module.optim_step(
        _RULES[rule],
        _RATES[rates],
        (tensors.parameters, gradients, *tensors.moments()),
        list(map(rows.__getitem__, identities)),
        [float(number) for numbers in distinct.values() for number in numbers],
        [-1 if key is None else int(key) for key in keys],
        steps,
        torch.get_num_threads(),
    )
    if sums is not None:
        # Autograd must notice, as it does when torch itself writes in place.
        torch.autograd.graph.increment_version(tensors.parameters)
    return sums


def rate_sums_native(
    moments: list[Tensor], corrections: Sequence[Number], eps: Sequence[float]
) -> list[Number] | None:
    """`rate_sum_reference` of every tensor, rounded as `step_native` rounds; None if it cannot.

    Args:
        moments: second moments.
        corrections: 1/sqrt of the bias correction of each.
        eps: of each.
    """
    module = None if tensors_are_virtual() else native()
    if module is None:
        return None
    sums: list[Number] | None = module.optim_rate_sums(
        moments, list(map(float, corrections)), list(eps), torch.get_num_threads()
    )
    return sums
