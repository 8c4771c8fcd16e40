"""Tracks the leading singular vectors of a matrix that changes a little between observations."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latewood.spectra.solvers.leading_vectors import Factors

__all__ = ["EXTRA", "SubspaceTracker"]

Array = NDArray[np.float64]

EXTRA = 8
"""Vectors tracked beyond those asked for, which speeds up the convergence of the last ones."""

_ROUNDS = 3
_LONGEST_REST = 8


class SubspaceTracker:
    r"""The first k singular values and vectors of one matrix, from those of its last observation.

    Block iteration from the last right vectors: :math:`Q R = A V`, then the decomposition of
    :math:`Q^T A` turns Q and V into the best left and right vectors of that subspace. What is
    accepted is certified by its residuals: with :math:`r_i = \|A v_i - \sigma_i u_i\|` (the other
    residual is zero) there are k different singular values of the matrix no farther from those
    found than :math:`(\sum_i r_i^2)^{1/2}`. That they are the largest is what the start from an
    exact decomposition and the extra vectors make likely; no residual can prove it.

    Args:
        count: k.
        tolerance: largest residual of an accepted vector, as a fraction of the largest value.
    """

    def __init__(self, count: int, *, tolerance: float = 1e-3) -> None:
        self.count = count
        self.tolerance = tolerance
        self._block: Tensor | None = None
        self._shape: tuple[int, ...] = ()
        self._failures = 0
        self._rest = 0

    def restart(self, exact: Factors) -> None:
        """Takes an exact decomposition, with ``count + EXTRA`` vectors or all, to start from."""
        self._block, self._shape = exact.right, exact.shape

    def track(self, matrix: Tensor) -> Factors | None:
        """The leading factors of the matrix as it is now.

        Args:
            matrix: (m, n) on the CPU.

        Returns:
            Factors with ``count`` values; None if there is nothing to start from, the shape has
            changed, the matrix is not finite or the residuals stay too large. After failures in a
            row it rests for up to eight calls, each time twice as many as before.
        """
        if self._block is None or self._shape != tuple(matrix.shape):
            self._block = None
            return None
        if self._rest:
            self._rest -= 1
            return None
        leading = self._iterate(matrix)
        if leading is None:
            self._rest = min(_LONGEST_REST, 2**self._failures)
            self._failures += 1
        else:
            self._failures = 0
        return leading

    def _iterate(self, matrix: Tensor) -> Factors | None:
        assert self._block is not None
        stored = np.ascontiguousarray(matrix.detach().double().numpy())
        right = np.asfortranarray(self._block.double().numpy())
        if not np.isfinite(stored.sum()) or not np.isfinite(right).all():
            return None
        image = _product(stored, right)
        for _ in range(_ROUNDS):
            basis = np.asfortranarray(np.linalg.qr(image)[0])
            projected = _product(stored, basis, transposed=True).T
            inner, values, outer = np.linalg.svd(projected, False)
            left, right = basis @ inner, np.asfortranarray(outer.T)
            image = _product(stored, right)
            residuals = np.linalg.norm(image - left * values, axis=0)[: self.count]
            if (residuals <= self.tolerance * values[0]).all():
                self._block = torch.from_numpy(right.copy()).float()
                return self._factors(values, left, right, float(np.linalg.norm(residuals)))
        return None

    def _factors(self, values: Array, left: Array, right: Array, error: float) -> Factors:
        k = self.count
        leading = torch.from_numpy(values[:k].copy())
        return Factors(
            leading.float(),
            torch.from_numpy(np.ascontiguousarray(left[:, :k])).float(),
            torch.from_numpy(np.ascontiguousarray(right[:, :k])).float(),
            error + 2.0**-24 * leading,
            "warm",
        )


def _product(stored: Array, block: Array, *, transposed: bool = False) -> Array:
    """The matrix, or its transpose, times some columns."""
    # Here, since importing it takes longer than most users of spectra ever need it.
    from scipy.linalg.blas import dgemm

    # scipy's BLAS, whose threads the caller has set; it takes Fortran's order without a copy.
    product: Array = dgemm(1.0, stored.T, block, trans_a=not transposed)
    return product
