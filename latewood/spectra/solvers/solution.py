"""What a solver returns: values and vectors, how they were found, how far they can be wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

__all__ = ["Solution", "SolverMethod"]

SolverMethod = Literal["svd", "gram", "warm", "fft", "none"]
"""How values were found: by a singular value decomposition or the eigenvalues of the Gram matrix,
both in float64; by iteration from earlier vectors; from the Fourier transform of a kernel; or not
at all."""


@dataclass(frozen=True)
class Solution:
    """Part of a singular value decomposition of a tall matrix.

    Args:
        values: (..., R), descending.
        tall_side: (..., m, k), singular vectors on the long side; (..., 0, n) or so if k is 0.
        flat_side: (..., n, k), those on the short side.
        errors: (..., R), bounds on the distances to the exact values.
        method: how they were found.
    """

    values: Tensor
    tall_side: Tensor
    flat_side: Tensor
    errors: Tensor
    method: SolverMethod
