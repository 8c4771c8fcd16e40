"""How far computed singular values, and what is made of them, can be from the exact ones."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["gram_errors", "rank_error", "rounding_errors", "svd_errors"]

_UNIT = 2.0**-53


def svd_errors(values: Tensor, rows: int) -> Tensor:
    r"""Bounds for a singular value decomposition in float64, which is backward stable.

    .. math:: |\tilde\sigma_i - \sigma_i| \le 10 \max(m, n)\, u\, \sigma_1

    Args:
        values: (..., n), descending.
        rows: m, the longer side.

    Returns:
        (..., n).
    """
    return (10 * rows * _UNIT * values[..., :1]).expand_as(values)


def gram_errors(values: Tensor, rows: int) -> Tensor:
    r"""Bounds for square roots of the eigenvalues of a Gram matrix, both computed in float64.

    The product is off by at most :math:`m u \|W\|_F^2`, its eigenvalues by another
    :math:`10 n u \sigma_1^2`; with E for their sum

    .. math:: |\tilde\sigma_i - \sigma_i| \le \min(\sqrt{E},\, E / \tilde\sigma_i)

    Args:
        values: (..., n), descending.
        rows: m, the longer side.

    Returns:
        (..., n); 0 for a matrix of zeros.
    """
    energy = values.square().sum(-1, keepdim=True)
    total = _UNIT * (rows * energy + 10 * values.shape[-1] * values[..., :1].square())
    return torch.where(values > 0, torch.minimum(total.sqrt(), total / values), total.sqrt())


def rounding_errors(values: Tensor, kind: torch.dtype) -> Tensor:
    """What rounding of values to a dtype adds to their errors."""
    return values * (torch.finfo(kind).eps / 2)


def rank_error(values: Tensor, errors: Tensor) -> Tensor:
    r"""Bound on the relative error of the effective rank ("exp"), the absolute one of the entropy.

    The entropy changes by :math:`|\ln p_i + H|` per change of a share; a share that its error can
    bring to zero counts with the whole of what it can add.

    Args:
        values: (..., R) singular values.
        errors: (..., R) bounds on their errors.

    Returns:
        (...) float64; 0 for a matrix of zeros, NaN where a value is NaN.
    """
    values, errors = values.double(), errors.double()
    total = values.sum(-1, keepdim=True)
    shares = torch.where(total > 0, values / total, 0.0)
    doubts = torch.where(total > 0, errors / total, 0.0)
    entropy = torch.special.entr(shares).sum(-1, keepdim=True)
    slope = (shares.clamp_min(1e-300).log() + entropy).abs()
    # Where the doubt is a tenth of the share or more, the slope changes on the way.
    steep = 2 * (doubts.clamp_min(1e-300).log().abs() + 1 + entropy)
    small = doubts <= 0.1 * shares
    bend = doubts / shares.clamp_min(1e-300)
    moved = (doubts * torch.where(small, 1.2 * slope + bend, steep)).sum(-1)
    return torch.where(total[..., 0].isnan(), torch.nan, moved)
