"""How many bits each group of weights is worth: the closed form of a separable quadratic."""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

from latewood.errors import invalid
from latewood.precision.number_format import MOST_BITS

__all__ = ["expected_loss", "largest_average", "optimal_bits", "price_of_average"]

_LN2: Final = math.log(2.0)
_HALVINGS: Final = 40


def optimal_bits(curvature: Tensor, price: float) -> Tensor:
    r"""The bits at which one bit more is worth its price.

    .. math:: p = \max(1, 1 + \tfrac12 \log_2 (h \ln 2 / (3 \lambda)))

    minimises :math:`h \sigma^2 / 6 + \lambda p` with :math:`\sigma = 2^{1-p}`: every factor of 4 in
    curvature buys one bit.

    Args:
        curvature: (h) second derivative by a weight on the grid's scale, any shape, 0 or more.
        price: (lambda) of a bit of one weight, positive.

    Returns:
        Bits, 1 or more, of the shape and dtype of ``curvature``; 8 at most.

    Raises:
        RequestError: a price that is not positive.

    Source: derived here from SMOL's objective [I]; its paper does not state it.
    """
    if not 0.0 < price < math.inf:
        raise invalid("price", price, "a positive finite number")
    ratio = curvature.clamp_min(0) * (_LN2 / (3.0 * price))
    return (1 + 0.5 * torch.log2(ratio)).clamp(1, MOST_BITS)


def price_of_average(curvature: Tensor, counts: Tensor, average: float) -> float:
    """The price of a bit at which ``optimal_bits`` has an asked average; by bisection.

    Args:
        curvature: (h) of the groups, shape (groups,), 0 or more, somewhere positive.
        counts: number of weights of each group, shape (groups,).
        average: bits over all weights, in (1, 8).

    Returns:
        The price (lambda) of a bit of one weight.

    Raises:
        RequestError: an average that no price gives, or curvature that is nowhere positive.
    """
    if not 1.0 < average < MOST_BITS:
        raise invalid("average", average, f"a number between 1 and {MOST_BITS}, both excluded")
    if not bool(((curvature > 0) & (counts > 0)).any()):
        raise invalid("curvature", "nowhere positive", "a group whose weights the loss depends on")
    reachable = largest_average(curvature, counts)
    if average >= reachable:
        raise invalid(
            "average", average, f"below {reachable:.4g}: the loss ignores the other weights"
        )
    wide, weights = curvature.double(), counts.double()
    alive = wide[(wide > 0) & (weights > 0)]
    # Between the price at which everything has 1 bit, and the one at which all have the most.
    low = math.log(float(alive.min()) * _LN2 / 3) - 2 * _LN2 * (MOST_BITS - 1)
    high = math.log(float(alive.max()) * _LN2 / 3)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        bits = optimal_bits(wide, math.exp(middle))
        if float((bits * weights).sum() / weights.sum()) > average:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)


def largest_average(curvature: Tensor, counts: Tensor) -> float:
    """The average of ``optimal_bits`` at a price near 0: 8 bits for all that the loss depends on.

    Args:
        curvature: (h) of the groups.
        counts: number of weights of each group, some of them positive.
    """
    most = torch.where(curvature > 0, float(MOST_BITS), 1.0).double()
    return float((most * counts.double()).sum() / counts.double().sum())


def expected_loss(curvature: Tensor, counts: Tensor, bits: Tensor) -> float:
    r"""What rounding costs on a quadratic: :math:`\sum_i n_i h_i \sigma_i^2 / 6`.

    Args:
        curvature: (h) of a weight of each group.
        counts: (n) weights of each group.
        bits: of each group, 1 or more.
    """
    widths = torch.exp2(1 - bits.double())
    return float((counts.double() * curvature.double() * widths.square()).sum() / 6)
