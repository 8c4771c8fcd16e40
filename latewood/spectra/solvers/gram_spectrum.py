"""Spectra by the matrix of inner products of a matrix's columns: exact, at a fraction of the price.

In float64 the squared condition costs less than float32 has digits. In float32 it would put a floor
of sqrt(eps) times the largest singular value under all others, so that is not done.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latewood.spectra.solvers.error_bounds import gram_errors, rank_error
from latewood.spectra.solvers.solution import Solution
from latewood.spectra.solvers.symmetric_eigen import (
    LapackError,
    add_lower_product,
    symmetric_spectrum,
    write_product,
)

Array = NDArray[np.float64]

__all__ = ["GRAM_RANK", "TOLERANCE", "by_gram", "lower_gram"]

GRAM_RANK = 32
"""From this rank on, eigenvalues of the Gram matrix are cheaper than singular values."""

TOLERANCE = 1e-7
"""Largest relative error of the effective rank that this way may cause."""

_BLOCK = 128
# Entries that are in float64 at a time: a cache holds them, and no page is new at every call.
_PANEL = 2**19
# Below this share of the largest value, the vectors of a Gram matrix lose digits that float32 has.
_VECTOR_RANGE = 1e-4


def by_gram(tall: Tensor, count: int) -> Solution | None:
    """Singular values and the first vectors of a tall matrix, where they are exact this way.

    Args:
        tall: (..., m, n) of a dtype whose squares are float64's, with m at least n at least 1.
        count: number of vectors, from 0 to n.

    Returns:
        The solution in float64; None if its error bound is above ``TOLERANCE``, as for a matrix
        without full rank, if a vector would lose digits, or for a matrix that is not finite.
    """
    try:
        squares, flat, zeros = _eigen(tall, count)
    except (LapackError, torch.linalg.LinAlgError):  # type: ignore[attr-defined]
        return None
    values = squares.clamp_min(0).sqrt()
    errors = torch.where(zeros, 0.0, gram_errors(values, tall.shape[-2]))
    if not bool((rank_error(values, errors) <= TOLERANCE).all()):
        return None
    if not count:
        return Solution(values, tall[..., :0], flat, errors, "gram")
    last = values[..., count - 1 : count]
    if bool(((last < _VECTOR_RANGE * values[..., :1]) & (last > 0)).any()):
        return None
    lengths = values[..., None, :count]
    side = torch.where(lengths > 0, _times(tall, flat) / lengths, 0.0)
    return Solution(values, side, flat, errors, "gram")


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
    """Eigenvalues, descending, leading eigenvectors, and which values are zero without a doubt.

    NaN for a matrix that is not finite.
    """
    if tall.device.type != "cpu":
        return _eigen_on_device(tall, count)
    *batch, rows, size = tall.shape
    squares = torch.zeros(math.prod(batch), size, dtype=torch.float64)
    flat = torch.zeros(math.prod(batch), size, count, dtype=torch.float64)
    zeros = torch.zeros(squares.shape, dtype=torch.bool)
    for index, matrix in enumerate(tall.reshape(-1, rows, size)):
        lower = _lower_gram_on_cpu(matrix)
        diagonal = lower.diagonal()
        # An entry that is not finite makes its column's sum of squares so.
        if not np.isfinite(diagonal).all():
            squares[index] = torch.nan
            continue
        used = np.flatnonzero(diagonal)
        # A layer with pruned channels has zero columns; without them it often has full rank.
        block = lower if len(used) == size else np.asfortranarray(lower[np.ix_(used, used)])
        zeros[index, len(used) :] = True
        if len(used):
            eigenvalues, vectors = symmetric_spectrum(block, min(count, len(used)))
            squares[index, : len(used)] = torch.from_numpy(eigenvalues.copy())
            flat[index, used, : vectors.shape[1]] = torch.from_numpy(vectors.copy())
    return (
        squares.reshape(*batch, size),
        flat.reshape(*batch, size, count),
        zeros.reshape(*batch, size),
    )


def _lower_gram_on_cpu(tall: Tensor) -> Array:
    size = tall.shape[-1]
    lower = np.zeros((size, size), order="F")
    for _, stored, transposed in _panels(tall):
        add_lower_product(lower, stored, transposed=transposed)
    return lower


def _panels(tall: Tensor) -> Iterator[tuple[slice, Array, bool]]:
    """Some rows at a time in float64, as they are stored; each panel takes the last one's memory.

    Yields:
        Which rows, the panel or its transpose, and whether it is the transpose.
    """
    rows, size = tall.shape
    step = min(rows, max(1, _PANEL // size))
    memory = torch.empty(step * size, dtype=torch.float64)
    transposed = tall.stride(0) < tall.stride(1)
    for start in range(0, rows, step):
        part = tall[start : start + step]
        stored = part.mT if transposed else part
        panel = memory[: part.numel()].view(stored.shape).copy_(stored)
        yield slice(start, start + len(part)), panel.numpy(), transposed


def _times(tall: Tensor, vectors: Tensor) -> Tensor:
    """(..., m, n) times (..., n, k) in float64."""
    if tall.device.type != "cpu":
        return tall.double() @ vectors
    *batch, rows, size = tall.shape
    count = vectors.shape[-1]
    products = []
    pairs = zip(tall.reshape(-1, rows, size), vectors.reshape(-1, size, count), strict=True)
    for matrix, block in pairs:
        product = np.empty((rows, count), order="F")
        right = np.asfortranarray(block.numpy())
        for panel_rows, stored, transposed in _panels(matrix):
            write_product(product[panel_rows], stored, right, transposed=transposed)
        products.append(torch.from_numpy(product))
    return torch.stack(products).reshape(*batch, rows, count)


def _eigen_on_device(tall: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    gram = lower_gram(tall)
    zeros = torch.zeros(gram.shape[:-1], dtype=torch.bool, device=tall.device)
    if not bool(gram.diagonal(dim1=-2, dim2=-1).isfinite().all()):
        lost = gram.new_full(gram.shape[:-1], torch.nan)
        return lost, gram[..., :count], zeros
    if count:
        squares, vectors = torch.linalg.eigh(gram)
        return squares.flip(-1), vectors[..., -count:].flip(-1), zeros
    squares = torch.linalg.eigvalsh(gram)
    return squares.flip(-1), gram[..., :0], zeros
