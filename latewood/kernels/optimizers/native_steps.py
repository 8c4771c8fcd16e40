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
    "advance_native",
    "exists",
    "rate_sums_native",
    "step_native",
]

_RULES = {"momentum": 0, "delayed": 1, "bounded": 2}
_RATES = {"none": 0, "old": 1, "new": 2}


def exists() -> bool:
    """Whether the native form can run now at all."""
    return native() is not None and not tensors_are_virtual()


def advance_native(steps: list[Tensor]) -> list[float] | None:
    """Adds 1 to each step count and returns the counts; None if it cannot.

    Args:
        steps: 0-dim float32 tensors.
    """
    module = native()
    if module is None or tensors_are_virtual():
        return None
    counts: list[float] | None = module.optim_advance(steps)
    return counts


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
    module = native()
    assert module is not None
    # Parameters with the same history have the same object.
    identities = list(map(id, scalars))
    distinct = dict(zip(identities, scalars, strict=True))
    rows = {key: row for row, key in enumerate(distinct)}
    numbers = [float(number) for numbers in distinct.values() for number in numbers]
    places = list(map(rows.__getitem__, identities))
    keys = [-1 if k is None else int(k) for k in tensors.keys()] if tensors.noise_keys else []

    def step(gradients: list[Tensor]) -> list[Number] | None:
        columns = (tensors.parameters, gradients, *tensors.moments())
        threads = torch.get_num_threads()
        sums: list[Number] | None = module.optim_step(
            _RULES[rule], _RATES[rates], columns, places, numbers, keys, threads
        )
        return sums

    sums = step(tensors.gradients)
    if sums is None:
        sums = step(list(map(gradient_like, tensors.gradients, tensors.parameters)))
    assert sums is not None
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
    module = native()
    if module is None or tensors_are_virtual():
        return None
    sums: list[Number] | None = module.optim_rate_sums(
        moments, list(map(float, corrections)), list(eps), torch.get_num_threads()
    )
    return sums
