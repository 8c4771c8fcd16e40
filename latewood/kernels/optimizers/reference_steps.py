"""The update rules of the optimizers in plain torch, tensor by tensor: the oracle of all forms.

Every rule is elementwise, so a step is a list of entries, one per tensor, each with its own few
numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

__all__ = [
    "Number",
    "Rates",
    "Rule",
    "Scalars",
    "StepTensors",
    "rate_sum_reference",
    "step_reference",
    "working_dtype",
]

Rule = Literal["momentum", "delayed", "bounded"]
Rates = Literal["none", "old", "new"]
Number = float | Tensor


class Scalars(NamedTuple):
    """The numbers of one step that all tensors with the same history share.

    A rule reads the ones it knows. ``factor`` multiplies the gradient (-1 to maximize, the inverse
    of a loss scale), then ``l2`` times the parameter is added to it. ``keep`` multiplies the
    parameter before the update; ``size`` scales the update, and a delayed step of size 0 leaves the
    parameter as it is.
    ``previous`` and ``following`` are 1/sqrt of the bias corrections of the second moment before
    and after the step. ``lower`` and ``upper`` clip the elementwise step size.
    """

    size: Number
    beta1: float = 0.0
    beta2: float = 0.0
    eps: float = 0.0
    keep: Number = 1.0
    l2: float = 0.0
    factor: float = 1.0
    previous: Number = 1.0
    following: Number = 1.0
    lower: Number = 0.0
    upper: Number = float("inf")


@dataclass(slots=True)
class StepTensors:
    """One tensor's part in a step: real, local tensors of one shape, and its numbers.

    The moments have the precision the arithmetic is done in; a half-precision parameter is read
    into it and rounded once, when it is written back.
    """

    parameter: Tensor
    gradient: Tensor
    exp_avg: Tensor | None
    exp_avg_sq: Tensor | None
    max_exp_avg_sq: Tensor | None
    scalars: Scalars


def step_reference(rule: Rule, entry: StepTensors, rates: Rates = "none") -> Number:
    """Carries out one entry with plain torch operators, in place; the oracle of the other forms.

    With g the gradient after ``factor`` and ``l2``, m and v the moments::

        momentum   m = beta1 m + (1-beta1) g;  p = keep p - size m
        delayed    m likewise;  p = keep p - size m / (sqrt(v) previous + eps);
                   v = beta2 v + (1-beta2) g^2
        bounded    m, v likewise;  p = keep p - clip(size / (sqrt(v) + eps), lower, upper) m
                   (v its running maximum where the entry has one)

    Args:
        rule: which of the three.
        entry: tensors, changed in place (never the gradient), and numbers.
        rates: "old" or "new" asks a delayed step for the sum of squared rates
            1/(sqrt(v) following + eps), of v before or after the step.

    Returns:
        The sum as a 0-dim tensor, or 0 where ``rates`` is "none".
    """
    numbers = entry.scalars
    stored = entry.parameter
    dtype = working_dtype(stored)
    # An independent copy where precisions differ, the parameter itself where they agree.
    parameter = stored.to(dtype)
    gradient = entry.gradient.to(dtype)
    if numbers.factor != 1.0:
        gradient = gradient * numbers.factor
    if numbers.l2 != 0.0:
        gradient = gradient.add(parameter, alpha=numbers.l2)
    total = _RULES[rule](entry, parameter, gradient, rates)
    if parameter is not stored:
        stored.copy_(parameter)
    return total


def working_dtype(parameter: Tensor) -> torch.dtype:
    """The precision of the arithmetic on a real parameter and of its moments."""
    # Second moments of float16 gradients underflow in float16: 1e-4 squared is already 0.
    narrow = parameter.dtype in (torch.float16, torch.bfloat16)
    return torch.float32 if narrow else parameter.dtype


def rate_sum_reference(exp_avg_sq: Tensor, correction: Number, eps: float) -> Tensor:
    """Sum over all elements of the squared rates 1/(sqrt(v) correction + eps).

    Args:
        exp_avg_sq: v, any shape, also empty.
        correction: 1/sqrt of the bias correction of v.
        eps: positive.

    Returns:
        0-dim float64 tensor.
    """
    return _sum_squared_rates(exp_avg_sq.sqrt(), correction, eps)


def _sum_squared_rates(root: Tensor, correction: Number, eps: float) -> Tensor:
    # Squares are added in the moments' precision by torch's pairwise sum and only the total is
    # widened: a float64 sum of float32 elements would first copy them all.
    return (root * correction).add_(eps).reciprocal_().square_().sum().double()


def _momentum(entry: StepTensors, parameter: Tensor, gradient: Tensor, rates: Rates) -> Number:
    numbers = entry.scalars
    direction = gradient
    if entry.exp_avg is not None:
        direction = entry.exp_avg.mul_(numbers.beta1).add_(gradient, alpha=1.0 - numbers.beta1)
    parameter.mul_(numbers.keep).sub_(direction * numbers.size)
    return 0.0


def _delayed(entry: StepTensors, parameter: Tensor, gradient: Tensor, rates: Rates) -> Number:
    numbers = entry.scalars
    first, second = _moments(entry)
    root = second.sqrt()
    first.mul_(numbers.beta1).add_(gradient, alpha=1.0 - numbers.beta1)
    if isinstance(numbers.size, Tensor) or numbers.size != 0.0:
        denominator = (root * numbers.previous).add_(numbers.eps)
        parameter.mul_(numbers.keep).sub_(first * numbers.size / denominator)
    second.mul_(numbers.beta2).addcmul_(gradient, gradient, value=1.0 - numbers.beta2)
    if rates == "none":
        return 0.0
    return _sum_squared_rates(
        root if rates == "old" else second.sqrt(), numbers.following, numbers.eps
    )


def _bounded(entry: StepTensors, parameter: Tensor, gradient: Tensor, rates: Rates) -> Number:
    numbers = entry.scalars
    first, second = _moments(entry)
    first.mul_(numbers.beta1).add_(gradient, alpha=1.0 - numbers.beta1)
    second.mul_(numbers.beta2).addcmul_(gradient, gradient, value=1.0 - numbers.beta2)
    if entry.max_exp_avg_sq is not None:
        second = torch.maximum(entry.max_exp_avg_sq, second, out=entry.max_exp_avg_sq)
    sizes = numbers.size / second.sqrt().add_(numbers.eps)
    sizes = sizes.clamp(numbers.lower, numbers.upper)  # type: ignore[arg-type]
    parameter.mul_(numbers.keep).sub_(sizes.mul_(first))
    return 0.0


def _moments(entry: StepTensors) -> tuple[Tensor, Tensor]:
    assert entry.exp_avg is not None and entry.exp_avg_sq is not None
    return entry.exp_avg, entry.exp_avg_sq


_RULES = {"momentum": _momentum, "delayed": _delayed, "bounded": _bounded}
