"""Spectra by the matrix of inner products of a matrix's columns: exact, at a fraction of the price.

In float64 the squared condition costs less than float32 has digits. In float32 it would put a floor
of sqrt(eps) times the largest singular value under all others, so that is not done.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from latewood.spectra.solvers.errors import gram_errors, rank_error
from latewood.spectra.solvers.lapack import LapackError, lower_product, symmetric_spectrum
from latewood.spectra.solvers.solved import Solved

__all__ = ["GRAM_RANK", "TOLERANCE", "by_gram", "lower_gram"]

GRAM_RANK = 32
"""From this rank on, eigenvalues of the Gram matrix are cheaper than singular values."""

TOLERANCE = 1e-7
"""Largest relative error of the effective rank that this way may cause."""

_BLOCK = 128
# Below this share of the largest value, the vectors of a Gram matrix lose digits that float32 has.
_VECTOR_RANGE = 1e-4


def by_gram(tall: Tensor, count: int) -> Solved | None:
    """Singular values and the first vectors of a tall matrix, where they are exact this way.

    Args:
        tall: (..., m, n) finite, float64, with m at least n at least 1.
        count: number of vectors, from 0 to n.

    Returns:
        The solution; None if its error bound is above ``TOLERANCE``, as for a matrix without full
        rank, or a vector would lose digits.
    """
    try:
        squares, flat, zeros = _eigen(tall, count)
    except (LapackError, torch.linalg.LinAlgError):  # type: ignore[attr-defined]
        return None
    values = squares.clamp_min(0).sqrt()
    errors = torch.where(zeros, 0.0, gram_errors(values, tall.shape[-2]))
    if bool((rank_error(values, errors) > TOLERANCE).any()):
        return None
    if not count:
        return Solved(values, tall[..., :0], flat, errors, "gram")
    last = values[..., count - 1 : count]
    if bool(((last < _VECTOR_RANGE * values[..., :1]) & (last > 0)).any()):
        return None
    lengths = values[..., None, :count]
    side = torch.where(lengths > 0, tall @ flat / lengths, 0.0)
    return Solved(values, side, flat, errors, "gram")


def lower_gram(tall: Tensor) -> Tensor:
    r"""The lower triangle of :math:`W^T W` in float64, on any device.

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


def _eigen(tall: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvalues, descending, leading eigenvectors, and which values are zero without a doubt."""
    if tall.device.type != "cpu":
        return _eigen_on_device(tall, count)
    *batch, rows, size = tall.shape
    squares = tall.new_zeros((math.prod(batch), size))
    flat = tall.new_zeros((math.prod(batch), size, count))
    zeros = torch.zeros(squares.shape, dtype=torch.bool)
    for index, each in enumerate(tall.reshape(-1, rows, size)):
        wide = each.mT.is_contiguous()
        stored = (each.mT if wide else each.contiguous()).numpy()
        lower = lower_product(stored, transposed=wide)
        used = np.flatnonzero(lower.diagonal())
        # A layer with pruned channels has zero columns; without them it often has full rank.
        part = lower if len(used) == size else np.asfortranarray(lower[np.ix_(used, used)])
        zeros[index, len(used) :] = True
        if len(used):
            found, vectors = symmetric_spectrum(part, min(count, len(used)))
            squares[index, : len(used)] = torch.from_numpy(found.copy())
            flat[index, used, : vectors.shape[1]] = torch.from_numpy(vectors.copy())
    return (
        squares.reshape(*batch, size),
        flat.reshape(*batch, size, count),
        zeros.reshape(*batch, size),
    )


def _eigen_on_device(tall: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    gram = lower_gram(tall)
    zeros = torch.zeros(gram.shape[:-1], dtype=torch.bool, device=tall.device)
    if count:
        squares, vectors = torch.linalg.eigh(gram)
        return squares.flip(-1), vectors[..., -count:].flip(-1), zeros
    squares = torch.linalg.eigvalsh(gram)
    return squares.flip(-1), gram[..., :0], zeros
