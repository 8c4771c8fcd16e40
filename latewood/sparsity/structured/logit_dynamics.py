"""How logits move under the penalty alone, and how the penalty and the temperatures are set."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from latewood.errors import invalid

__all__ = [
    "flow",
    "growth_logit",
    "growth_ratio",
    "penalty_weight",
    "temperatures",
]

_ROUNDS = 200


def flow(z: float) -> float:
    """The first integral of the penalty's flow, ``F(z) = 2 sinh z + 2 z``.

    A logit s without gradient of its own follows ds/dtau = -lambda beta p (1 - p) with
    p = sigmoid(beta s), and then F(beta s) falls by lambda beta^2 tau. F is odd and increasing.

    Args:
        z: temperature times logit.
    """
    return 2.0 * math.sinh(z) + 2.0 * z


def growth_logit(*, weight: float, time: float) -> float:
    """The logit from which the penalty alone reaches 0 in a given time, at temperature 1.

    -a with F(a) = |lambda| tau: after that time half of what was absent is sampled.

    Args:
        weight: (lambda), as large as it is at the start of growth; its sign does not matter.
        time: (tau) the sum of the learning rates, times 1 / (1 - momentum) with momentum.

    Returns:
        A negative logit, or 0.
    """
    return -_inverse_flow(abs(weight) * time)


def _inverse_flow(value: float) -> float:
    """z with F(z) = value, by bisection: F is increasing and steeper than 4."""
    low, high = 0.0, abs(value) / 4.0
    for _ in range(_ROUNDS):
        middle = (low + high) / 2.0
        # sinh overflows beyond 700, far above any logit.
        if middle > 700.0 or flow(middle) > abs(value):
            high = middle
        else:
            low = middle
    return math.copysign(low, value)


def growth_ratio(final_temperature: float, epochs: int) -> float:
    """The factor (gamma) by which one epoch of presence raises a temperature.

    ``gamma = final_temperature ** (1 / epochs)``.

    Args:
        final_temperature: where a structure ends that was present in all epochs.
        epochs: (T) of the whole run.
    """
    return float(final_temperature ** (1.0 / epochs))


def temperatures(ages: Tensor, ratio: float) -> Tensor:
    """The temperature of each structure, ``beta = gamma ** t``.

    Args:
        ages: (t) epochs in which the structure was sampled, int64.
        ratio: (gamma).

    Returns:
        float64, of the ages' shape.
    """
    powers = [ratio**age for age in ages.flatten().tolist()]
    return torch.tensor(powers, dtype=torch.float64).view(ages.shape)


def penalty_weight(base: float, *, sparsity: float, wanted: float, normalised: bool) -> float:
    """The weight of the penalty, which changes its sign at the budget.

    ``lambda = base (u - u_G)``, divided by ``1 - u`` if normalised: then the weight at the start of
    growth is about ``-base`` for every budget.

    Args:
        base: (lambda_base).
        sparsity: (u_G) the share of the full network that is absent now.
        wanted: (u) the share that the budget leaves out, below 1.
        normalised: whether to divide.

    Returns:
        Negative while the network is below the budget: structures grow.

    Raises:
        RequestError: a wanted sparsity of 1.
    """
    if not wanted < 1.0:
        raise invalid("wanted", wanted, "a sparsity below 1")
    weight = base * (wanted - sparsity)
    return weight / (1.0 - wanted) if normalised else weight
