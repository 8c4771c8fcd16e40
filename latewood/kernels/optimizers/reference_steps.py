"""The update rules of the optimizers in plain torch, tensor by tensor: the oracle of all forms.

Every rule is elementwise, so a step is lists of tensors, and a few numbers for each parameter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from latewood.kernels.optimizers.stochastic_rounding import round_with_noise

__all__ = [
    "Number",
    "Rates",
    "UpdateRule",
    "Scalars",
    "StepTensors",
    "rate_sum_reference",
    "step_reference",
    "working_dtype",
]

UpdateRule = Literal["momentum", "delayed", "bounded"]
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
    """What a step reads and writes, list by list: entry k of every list belongs to parameter k.

    Real, local tensors. A moment that the rule does not keep is None. Moments have the precision
    the arithmetic is done in (`working_dtype`); a half-precision parameter is read into it and
    rounded once, when it is written back: to nearest, or a bfloat16 parameter at random where
    ``noise_keys`` has a key for it.
    """

    parameters: list[Tensor]
    gradients: list[Tensor]
    exp_avgs: list[Tensor | None]
    exp_avg_sqs: list[Tensor | None]
    max_exp_avg_sqs: list[Tensor | None]
    noise_keys: Sequence[int | Tensor | None] = ()

    def moments(self) -> tuple[list[Tensor | None], list[Tensor | None], list[Tensor | None]]:
        """The three lists of moments."""
        return self.exp_avgs, self.exp_avg_sqs, self.max_exp_avg_sqs

    def select(self, indices: Sequence[int]) -> StepTensors:
        """The entries at these indices, in their order."""
        columns = (self.exp_avgs, self.exp_avg_sqs, self.max_exp_avg_sqs)
        first, second, peaks = ([moments[index] for index in indices] for moments in columns)
        return StepTensors(
            [self.parameters[index] for index in indices],
            [self.gradients[index] for index in indices],
            first,
            second,
            peaks,
            [self.noise_keys[index] for index in indices] if self.noise_keys else (),
        )

    def rounding_keys(self) -> Sequence[int | Tensor | None]:
        """The key of each entry's noise, None where it is rounded to nearest."""
        if not self.noise_keys:
            return [None] * len(self.parameters)
        pairs = zip(self.noise_keys, self.parameters, strict=True)
        return [key if parameter.dtype is torch.bfloat16 else None for key, parameter in pairs]


def step_reference(
    rule: UpdateRule, tensors: StepTensors, scalars: Sequence[Scalars], rates: Rates = "none"
) -> list[Number]:
    """Carries out a step with plain torch operators, in place; the oracle of the other forms.

    With g the gradient after ``factor`` and ``l2``, m and v the moments::

        momentum   m = beta1 m + (1-beta1) g;  p = keep p - size m
        delayed    m likewise;  p = keep p - size m / (sqrt(v) previous + eps);
                   v = beta2 v + (1-beta2) g^2
        bounded    m, v likewise;  p = keep p - clip(size / (sqrt(v) + eps), lower, upper) m
                   (v its running maximum where the step has one)

    Args:
        rule: which of the three.
        tensors: changed in place, never the gradients.
        scalars: the numbers of each parameter.
        rates: "old" or "new" asks a delayed step for the sum of squared rates
            1/(sqrt(v) following + eps), of v before or after the step.

    Returns:
        One sum per parameter, a 0-dim tensor; zeros where ``rates`` is "none".
    """
    totals: list[Number] = []
    columns = (tensors.parameters, tensors.gradients, *tensors.moments())
    rows = zip(*columns, strict=True)
    for (stored, gradient, *moments), numbers, key in zip(
        rows, scalars, tensors.rounding_keys(), strict=True
    ):
        dtype = working_dtype(stored.dtype)
        # An independent copy where precisions differ, the parameter itself where they agree.
        parameter = stored.to(dtype)
        gradient = gradient.to(dtype)
        if numbers.factor != 1.0:
            gradient = gradient * numbers.factor
        if numbers.l2 != 0.0:
            gradient = gradient.add(parameter, alpha=numbers.l2)
        totals.append(_step(rule, parameter, gradient, moments, numbers, rates))
        if parameter is not stored:
            stored.copy_(parameter if key is None else round_with_noise(parameter, key))
    return totals


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """The precision of the arithmetic on parameters of this precision, and of their moments."""
    # Second moments of float16 gradients underflow in float16: 1e-4 squared is already 0.
    return _WIDER.get(dtype, dtype)


_WIDER = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.complex32: torch.complex64,
}


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


def _step(
    rule: UpdateRule,
    parameter: Tensor,
    gradient: Tensor,
    moments: Sequence[Tensor | None],
    numbers: Scalars,
    rates: Rates,
) -> Number:
    first, second, peak = moments
    if rule == "momentum":
        _momentum(parameter, gradient, first, numbers)
        return 0.0
    assert first is not None and second is not None
    if rule == "delayed":
        return _delayed(parameter, gradient, first, second, numbers, rates)
    _bounded(parameter, gradient, first, second, peak, numbers)
    return 0.0


def _momentum(parameter: Tensor, gradient: Tensor, first: Tensor | None, numbers: Scalars) -> None:
    direction = gradient
    if first is not None:
        direction = first.mul_(numbers.beta1).add_(gradient, alpha=1.0 - numbers.beta1)
    parameter.mul_(numbers.keep).sub_(direction * numbers.size)


def _delayed(
    parameter: Tensor,
    gradient: Tensor,
    first: Tensor,
    second: Tensor,
    numbers: Scalars,
    rates: Rates,
) -> Number:
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


def _bounded(
    parameter: Tensor,
    gradient: Tensor,
    first: Tensor,
    second: Tensor,
    peak: Tensor | None,
    numbers: Scalars,
) -> None:
    first.mul_(numbers.beta1).add_(gradient, alpha=1.0 - numbers.beta1)
    second.mul_(numbers.beta2).addcmul_(gradient, gradient, value=1.0 - numbers.beta2)
    if peak is not None:
        second = torch.maximum(peak, second, out=peak)
    sizes = numbers.size / second.sqrt().add_(numbers.eps)
    sizes = sizes.clamp(numbers.lower, numbers.upper)  # type: ignore[arg-type]
    parameter.mul_(numbers.keep).sub_(sizes.mul_(first))
