"""Singular values of a matrix, and what their distribution says about its rank."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from latewood.errors import invalid
from latewood.spectra.solvers.leading_vectors import factors

__all__ = ["RankKind", "count90", "effective_rank", "gini", "singular_values", "stable_rank"]

RankKind = Literal["exp", "entropy"]
"""The effective rank as an exponential, or the entropy itself."""


def singular_values(matrix: Tensor) -> Tensor:
    r"""All singular values of a matrix, or of each matrix of a batch, in descending order.

    Computed in float64; the noise of a lower precision's rounding stays in the spectrum. A matrix
    with NaN or Inf, or one that no solver can decompose, gives NaN. For their error bounds see
    ``factors`` with ``k=0``.

    Args:
        matrix: (..., m, n) real tensor.

    Returns:
        (..., min(m, n)) in float32, or float64 for float64 input, on the matrix's device.

    Raises:
        RequestError: the tensor has fewer than two dimensions or is complex.
    """
    return factors(matrix, 0).values


def effective_rank(
    singular_values: Tensor, *, kind: RankKind = "exp", normalize: bool = True
) -> Tensor:
    r"""How many directions a matrix uses, from the entropy of its singular values.

    .. math:: p_i = \sigma_i / \sum_j \sigma_j, \quad H = -\sum_i p_i \ln p_i, \quad
        \text{"exp"}: e^H, \quad \text{"entropy"}: H

    With ``normalize`` either is divided by R, the number of singular values; "exp" then lies in
    [1/R, 1]. It is 0 only for a matrix that is zero everywhere, and NaN where a value is NaN.

    Args:
        singular_values: (..., R) non-negative, in any order.
        kind: "exp" as in the code of the paper and in Roy & Vetterli; "entropy" as printed in it.
        normalize: whether to divide by R.

    Returns:
        (...) float64.

    Raises:
        RequestError: an unknown ``kind``.

    Source: arXiv 2408.11804, equation 1 ("entropy") and its released code ("exp").
    """
    if kind not in ("exp", "entropy"):
        raise invalid("kind", kind, '"exp" or "entropy"')
    shares = _shares(singular_values)
    entropy = torch.special.entr(shares).sum(-1)
    rank = entropy.exp() if kind == "exp" else entropy
    if normalize:
        rank = rank / max(1, shares.shape[-1])
    return torch.where(shares.sum(-1) == 0, 0.0, rank)


def count90(singular_values: Tensor) -> Tensor:
    """The fraction of the singular values that is needed for more than 90 % of their sum.

    Args:
        singular_values: (..., R) in descending order.

    Returns:
        (...) float64 in [1/R, 1]; 0 for a zero matrix, NaN where a value is NaN.

    Source: released code of arXiv 2408.11804.
    """
    shares = _shares(singular_values)
    total = shares.sum(-1)
    needed = (shares.cumsum(-1) <= 0.9).sum(-1) + 1.0
    fraction = needed.clamp_max(shares.shape[-1]).double() / max(1, shares.shape[-1])
    return torch.where(total == 0, 0.0, torch.where(total.isnan(), torch.nan, fraction))


def stable_rank(singular_values: Tensor, *, normalize: bool = True) -> Tensor:
    r"""The squared Frobenius norm over the squared spectral norm.

    .. math:: \sum_i \sigma_i^2 / \max_i \sigma_i^2

    Args:
        singular_values: (..., R).
        normalize: whether to divide by R.

    Returns:
        (...) float64; 0 for a zero matrix, NaN where a value is NaN.

    Source: released code of arXiv 2408.11804.
    """
    rank = _relative(singular_values).square().sum(-1)
    return rank / max(1, singular_values.shape[-1]) if normalize else rank


def gini(singular_values: Tensor) -> Tensor:
    r"""The Gini coefficient of the singular values: 0 when all are equal, near 1 when one rules.

    .. math:: \sum_{i,j} |\sigma_i - \sigma_j| \, / \, (2 R \sum_i \sigma_i)

    Args:
        singular_values: (..., R) in any order.

    Returns:
        (...) float64; 0 for a zero matrix, NaN where a value is NaN.

    Source: released code of arXiv 2408.11804.
    """
    ascending = _shares(singular_values).sort(-1).values
    count = ascending.shape[-1]
    weights = 2 * torch.arange(1, count + 1, device=ascending.device, dtype=torch.float64)
    return ((weights - (count + 1)) * ascending).sum(-1) / max(1, count)


def _relative(singular_values: Tensor) -> Tensor:
    # Relative to the largest, so that neither sums nor squares leave the range of float64.
    if singular_values.ndim == 0:
        raise invalid("singular_values", "a scalar", "a tensor of one dimension or more")
    values = singular_values.detach().double()
    if values.shape[-1] == 0:
        return values
    largest = values.amax(-1, keepdim=True)
    return torch.where(largest == 0, 0.0, values / largest)


def _shares(singular_values: Tensor) -> Tensor:
    relative = _relative(singular_values)
    total = relative.sum(-1, keepdim=True)
    return torch.where(total == 0, 0.0, relative / total)
