"""The leading singular vectors of a matrix, exact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from latewood.errors import invalid
from latewood.spectra.gram import GRAM_RANK, lower_gram

__all__ = ["Factors", "factors"]

# Below this share of the largest value, the vectors of a Gram matrix lose digits that float32 has.
_GRAM_RANGE = 1e-4


@dataclass(frozen=True)
class Factors:
    r"""A singular value decomposition :math:`U \,\text{diag}(\sigma) V^T`, cut after k vectors.

    Args:
        values: (..., R), all singular values, descending.
        left: (..., m, k), the first k columns of U: directions of the output.
        right: (..., n, k), the first k columns of V: directions of the input.
    """

    values: Tensor
    left: Tensor
    right: Tensor

    @property
    def count(self) -> int:
        """k, the number of pairs of vectors."""
        return self.left.shape[-1]

    @property
    def shape(self) -> tuple[int, ...]:
        """(..., m, n), the shape of the matrix."""
        return (*self.left.shape[:-1], self.right.shape[-2])


def factors(matrix: Tensor, k: int | None = None) -> Factors:
    r"""The singular values of a matrix, or of each of a batch, with the first k pairs of vectors.

    Computed in float64, on the transpose of a wide matrix. A direction whose singular value is zero
    to the precision of the matrix is arbitrary; its vectors are zeros, so that they agree and align
    with nothing. A matrix with NaN or Inf, or one that no solver can decompose, gives NaN.

    Args:
        matrix: (..., m, n) real tensor.
        k: number of pairs of vectors; None for all R = min(m, n), and never more.

    Returns:
        Float32 factors, or float64 for float64 input, on the matrix's device.

    Raises:
        RequestError: fewer than two dimensions, complex, or ``k`` below 1.
    """
    if matrix.ndim < 2 or matrix.is_complex():
        given = f"{tuple(matrix.shape)} {matrix.dtype}"
        raise invalid("matrix", given, "a real tensor of at least two dimensions")
    if k is not None and k < 1:
        raise invalid("k", k, "an integer of at least 1, or None for all")
    kind = torch.float64 if matrix.dtype == torch.float64 else torch.float32
    wide = matrix.shape[-2] < matrix.shape[-1]
    # LAPACK is several times slower on a wide matrix than on its transpose.
    tall = (matrix.mT if wide else matrix).detach().double()
    rank = tall.shape[-1]
    count = rank if k is None else min(k, rank)
    finite = tall.isfinite().flatten(-2).all(-1)[..., None]
    tall = torch.where(finite[..., None], tall, 0.0)
    values, tall_side, flat_side = _decomposed(tall, count, exact=kind == torch.float64)
    noise = tall.shape[-2] * torch.finfo(kind).eps if kind == torch.float64 else 1.2e-7
    undefined = values[..., None, :count] <= noise * values[..., None, :1]
    values = torch.where(finite, values, torch.nan).to(kind)
    sides = [
        torch.where(finite[..., None], torch.where(undefined, 0.0, side), torch.nan).to(kind)
        for side in (tall_side, flat_side)
    ]
    left, right = reversed(sides) if wide else sides
    return Factors(values, left, right)


def _decomposed(tall: Tensor, count: int, *, exact: bool) -> tuple[Tensor, Tensor, Tensor]:
    solvers: list[Callable[[Tensor, int], tuple[Tensor, Tensor, Tensor] | None]] = [_svd, _svd_cpu]
    if not exact and tall.shape[-1] >= GRAM_RANK and tall.numel():
        solvers.insert(0, _gram)
    for solver in solvers:
        try:
            found = solver(tall, count)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            continue
        if found is not None:
            return found
    *batch, rows, rank = tall.shape
    sides = tall.new_full((*batch, rows, count), torch.nan)
    return tall.new_full((*batch, rank), torch.nan), sides, sides[..., :rank, :]


def _gram(tall: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor] | None:
    squares, vectors = torch.linalg.eigh(lower_gram(tall))
    values = squares.clamp_min(0).sqrt().flip(-1)
    last = values[..., count - 1 : count]
    if not bool((last >= _GRAM_RANGE * values[..., :1]).all()) or not bool((last > 0).all()):
        return None
    flat = vectors[..., -count:].flip(-1)
    return values, tall @ flat / values[..., None, :count], flat


def _svd(tall: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    left, values, right = torch.linalg.svd(tall, full_matrices=False)
    return values, left[..., :count], right.mT[..., :count]


def _svd_cpu(tall: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    values, left, right = _svd(tall.cpu(), count)
    return values.to(tall), left.to(tall), right.to(tall)
