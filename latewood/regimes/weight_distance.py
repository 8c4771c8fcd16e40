"""How far the weights of a diagonal network must move for a predictor: explicit regularisation."""

from __future__ import annotations

import torch
from torch import Tensor

from latewood.errors import invalid
from latewood.regimes.potentials import Numbers, finite_matrix, numbers, start_shape

__all__ = ["explicit_regularization"]


def explicit_regularization(
    beta: Tensor, *, depth: Numbers = 2.0, alpha: Numbers, shape: Numbers = 1.0
) -> Tensor:
    r"""The squared distance from the start to the nearest weights with a given predictor.

    .. math:: R(\beta) = \min_{w_+^D - w_-^D = \beta} |w_+ - \alpha w|^2 + |w_- - \alpha w|^2

    What regularising the distance from the start would prefer, which is not what gradient flow
    does: R nears the l1 norm polynomially in alpha, ``potential`` of depth 2 only with an
    exponentially small one.

    Args:
        beta: (..., d), linear predictors.
        depth: D, any real number of at least 2; several broadcast with the leading dimensions.
        alpha: scale of the start, above 0; several likewise.
        shape: w, its shape: one number or (d,), above 0.

    Returns:
        The distances in float64, shape of the leading dimensions and the sweep together.

    Raises:
        RequestError: a value out of range, named.

    Source: COLT 2020 (arXiv 2002.09277), section 4, for D = 2 and a shape of ones: there it is
    alpha^2 sum r(beta_i / alpha^2), r the smallest real root of a quartic. Other cases are derived.
    """
    given = torch.as_tensor(beta)
    if given.ndim == 0:
        raise invalid("beta", tuple(given.shape), "at least one dimension")
    values = finite_matrix("beta", given, given.ndim).abs()
    depths = numbers("depth", depth, least=2)[..., None]
    start = numbers("alpha", alpha, least=0, open_end=True)[..., None] * start_shape(
        shape, values.shape[-1]
    )
    try:
        ratio, d, start = torch.broadcast_tensors(values / start**depths, depths, start)
    except RuntimeError as error:
        raise invalid(
            "alpha", tuple(start.shape[:-1]), "sweeps that broadcast with beta"
        ) from error
    if not bool(torch.isfinite(ratio).all()):
        raise invalid("alpha", float(start.min()), "beta / alpha ** depth that float64 can hold")
    # One weight grows from 1 to 1 + grown, the other shrinks to 1 - shrunk, which is bracketed.
    low, high = torch.zeros_like(ratio), torch.ones_like(ratio)
    shrunk = (ratio / (2 * d)).clamp_max(0.5)
    for _ in range(200):
        grown = _grown(ratio, d, shrunk)
        share = ((1 - shrunk) / (1 + grown)) ** (d - 1)
        excess = shrunk - grown * share
        slope = (
            1
            + share * share
            + grown * share * (d - 1) * (1 / (1 - shrunk).clamp_min(1e-300) - share / (1 + grown))
        )
        high, low = torch.where(excess > 0, shrunk, high), torch.where(excess > 0, low, shrunk)
        newton = shrunk - excess / slope
        after = torch.where((newton >= low) & (newton <= high), newton, (low + high) / 2)
        settled = (after - shrunk).abs() <= 4.5e-16 * shrunk
        shrunk = after
        if bool(settled.all()):
            break
    distance: Tensor = (start**2 * (_grown(ratio, d, shrunk) ** 2 + shrunk**2)).sum(-1)
    return distance


def _grown(ratio: Tensor, depth: Tensor, shrunk: Tensor) -> Tensor:
    """By how much the larger weight exceeds 1, if the smaller one is at 1 - shrunk."""
    power = torch.expm1(depth * torch.log1p(-shrunk))
    return torch.expm1(torch.log1p((ratio + power).clamp_min(-1.0)) / depth)
