"""The leading singular vectors of a matrix, exact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latewood.errors import invalid
from latewood.spectra.solvers.error_bounds import rounding_errors, svd_errors
from latewood.spectra.solvers.gram_spectrum import GRAM_RANK, by_gram
from latewood.spectra.solvers.solution import Solution, SolverMethod

__all__ = ["Factors", "factors", "factors_together"]


@dataclass(frozen=True)
class Factors:
    r"""A singular value decomposition :math:`U \,\text{diag}(\sigma) V^T`, cut after k vectors.

    Args:
        values: (..., R), all singular values, descending; of a tracked one only the first k.
        left: (..., m, k), the first k columns of U: directions of the output.
        right: (..., n, k), the first k columns of V: directions of the input.
        errors: (..., R), bounds on the distances of the values from the exact ones; None where
            nobody knows.
        method: how the values were found.
    """

    values: Tensor
    left: Tensor
    right: Tensor
    errors: Tensor | None = None
    method: SolverMethod = "svd"

    @property
    def count(self) -> int:
        """k, the number of pairs of vectors."""
        return self.left.shape[-1]

    @property
    def shape(self) -> tuple[int, ...]:
        """(..., m, n), the shape of the matrix."""
        return (*self.left.shape[:-1], self.right.shape[-2])

    def of(self, index: int) -> Factors:
        """Those of one matrix of a batch."""
        return Factors(
            self.values[index],
            self.left[index],
            self.right[index],
            None if self.errors is None else self.errors[index],
            self.method,
        )


def factors(matrix: Tensor, k: int | None = None) -> Factors:
    r"""The singular values of a matrix, or of each of a batch, with the first k pairs of vectors.

    Computed in float64, by the Gram matrix where its error bound allows it. A direction whose
    singular value is zero to the precision of the matrix is arbitrary; its vectors are zeros, so
    that they agree and align with nothing. A matrix with NaN or Inf, or one that no solver can
    decompose, gives NaN: a training run is never stopped for a picture.

    Args:
        matrix: (..., m, n) real tensor.
        k: number of pairs of vectors, 0 for values alone; None for all R = min(m, n), and never
            more.

    Returns:
        Float32 factors, or float64 for float64 input, on the matrix's device.

    Raises:
        RequestError: fewer than two dimensions, complex, or a negative ``k``.
    """
    if matrix.ndim < 2 or matrix.is_complex():
        given = f"{tuple(matrix.shape)} {matrix.dtype}"
        raise invalid("matrix", given, "a real tensor of at least two dimensions")
    if k is not None and k < 0:
        raise invalid("k", k, "an integer of at least 0, or None for all")
    tall, count = _tall(matrix), _count(matrix, k)
    return _packed(matrix, *_solution(tall, count))


def factors_together(matrices: Sequence[Tensor], k: int | None = None) -> list[Factors] | None:
    """What ``factors`` gives for each of several small matrices, asked for at once.

    Args:
        matrices: (m, n) of one shape and dtype, on one device.
        k: see ``factors``.

    Returns:
        One for each; None where one solver does not serve all.
    """
    stacked = torch.stack(list(matrices))
    tall, count = _tall(stacked), _count(stacked, k)
    if _suits_gram(tall):
        solution = by_gram(tall, count)
        if solution is None:
            return None
        batch = _packed(stacked, solution, _all_finite(tall))
    else:
        batch = _packed(stacked, *_solution(tall, count))
    return [batch.of(index) for index in range(len(matrices))]


def _tall(matrix: Tensor) -> Tensor:
    # LAPACK is several times slower on a wide matrix than on its transpose.
    return (matrix.mT if matrix.shape[-2] < matrix.shape[-1] else matrix).detach()


def _count(matrix: Tensor, k: int | None) -> int:
    rank = min(matrix.shape[-2:])
    return rank if k is None else min(k, rank)


def _suits_gram(tall: Tensor) -> bool:
    return tall.dtype != torch.float64 and tall.shape[-1] >= GRAM_RANK and tall.numel() > 0


def _all_finite(tall: Tensor) -> Tensor:
    return torch.ones(tall.shape[:-2], dtype=torch.bool, device=tall.device)


def _packed(matrix: Tensor, solution: Solution, finite: Tensor) -> Factors:
    """The solution of a matrix's tall side as its factors, with what is undefined marked."""
    kind = torch.float64 if matrix.dtype == torch.float64 else torch.float32
    count = solution.flat_side.shape[-1]
    longer = max(matrix.shape[-2:])
    noise = longer * torch.finfo(kind).eps if kind == torch.float64 else 1.2e-7
    undefined = solution.values[..., None, :count] <= noise * solution.values[..., None, :1]
    lost = ~finite[..., None]
    values = torch.where(lost, torch.nan, solution.values)
    errors = torch.where(lost, torch.nan, solution.errors + rounding_errors(values, kind))
    sides = [
        torch.where(lost[..., None], torch.nan, torch.where(undefined, 0.0, side)).to(kind)
        for side in (solution.tall_side, solution.flat_side)
    ]
    wide = matrix.shape[-2] < matrix.shape[-1]
    left, right = reversed(sides) if wide else sides
    return Factors(values.to(kind), left, right, errors, solution.method)


def _solution(tall: Tensor, count: int) -> tuple[Solution, Tensor]:
    """The solution, and which matrices are finite, where that is worth finding out."""
    gram, finite = _suits_gram(tall), _all_finite(tall)
    if gram and (solution := by_gram(tall, count)) is not None:
        return solution, finite
    double = tall.double()
    # Sums of float32 do not overflow in float64; those of float64 may, and are looked at again.
    if not bool(double.sum().isfinite()):
        finite = double.isfinite().flatten(-2).all(-1)
        double = torch.where(finite[..., None, None], double, 0.0)
        if gram and (solution := by_gram(double, count)) is not None:
            return solution, finite
    return _by_any_svd(double, count), finite


def _by_any_svd(tall: Tensor, count: int) -> Solution:
    for solver in (_by_svd, _by_svd_on_cpu):
        try:
            return solver(tall, count)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            continue
    *batch, rows, rank = tall.shape
    sides = tall.new_full((*batch, rows, count), torch.nan)
    values = tall.new_full((*batch, rank), torch.nan)
    return Solution(values, sides, sides[..., :rank, :], values, "none")


def _by_svd(tall: Tensor, count: int) -> Solution:
    if not count:
        values = torch.linalg.svdvals(tall)
        left, flat = tall[..., :0], tall[..., : values.shape[-1], :0]
    else:
        left, values, right = torch.linalg.svd(tall, full_matrices=False)
        left, flat = left[..., :count], right.mT[..., :count]
    return Solution(values, left, flat, svd_errors(values, tall.shape[-2]), "svd")


def _by_svd_on_cpu(tall: Tensor, count: int) -> Solution:
    solution = _by_svd(tall.cpu(), count)
    tensors = (solution.values, solution.tall_side, solution.flat_side, solution.errors)
    values, left, flat, errors = (tensor.to(tall) for tensor in tensors)
    return Solution(values, left, flat, errors, "svd")
