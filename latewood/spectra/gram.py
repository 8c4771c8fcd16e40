"""The matrix of inner products of a tall matrix's columns, for exact spectra at half the price."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["GRAM_RANK", "gram_values", "lower_gram"]

GRAM_RANK = 32
"""From this rank on, eigenvalues of the Gram matrix are cheaper than singular values."""

_BLOCK = 128
_RANGE = 1e-6


def lower_gram(tall: Tensor) -> Tensor:
    r"""The lower triangle of :math:`W^T W` in float64.

    In float64 the squared condition costs less than float32 has digits; in float32 it would put a
    floor of sqrt(eps) times the largest singular value under all others.

    Args:
        tall: (..., m, n), any real dtype.

    Returns:
        (..., n, n) float64; entries above the diagonal are not to be read.
    """
    double = tall.double()
    size = tall.shape[-1]
    result = double.new_zeros((*tall.shape[:-2], size, size))
    # By blocks of columns, without most of what lies above the diagonal.
    for start in range(0, size, _BLOCK):
        stop = min(start + _BLOCK, size)
        below = double[..., start:].mT @ double[..., start:stop]
        result[..., start:, start:stop] = below
    return result


def gram_values(tall: Tensor) -> Tensor | None:
    """The singular values of a tall matrix in float64, where this way to them is exact enough.

    Args:
        tall: (..., m, n) with m at least n.

    Returns:
        (..., n), descending; None if some are so small that rounding would show in their sum, as
        for a matrix without full rank.
    """
    squares: Tensor = torch.linalg.eigvalsh(lower_gram(tall)).flip(-1)
    if bool((squares[..., -1] <= _RANGE**2 * squares[..., 0]).any()):
        return None
    return squares.sqrt()
