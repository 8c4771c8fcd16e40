"""What a snapshot holds: the spectrum of each matrix, and the alignment of each pair of layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["FloatArray", "PairAlignment", "Spectrum"]

FloatArray = np.ndarray[tuple[int, ...], np.dtype[np.floating[Any]]]


@dataclass(frozen=True)
class Spectrum:
    """The singular values of one matrix, perhaps with the first of its singular vectors.

    Args:
        name: the matrix's name, mostly that of its parameter.
        shape: (out, in), or (groups, out, in), of the matrix.
        values: (R,), or (groups, R), descending along the last dimension; the first k of them if
            ``method`` is "warm".
        left: (out, k), or (groups, out, k), in half or single precision; None without vectors.
        right: (in, k), or (groups, in, k), alike.
        errors: shaped as ``values``, bounds on the distances to the exact ones.
        method: "svd" or "gram", both in float64; "warm" for a few values, tracked from earlier
            ones; "none" where there are none to be had.
        dtype: of the weights as they are stored.
    """

    name: str
    shape: tuple[int, ...]
    values: np.ndarray[tuple[int, ...], np.dtype[np.float32]]
    left: FloatArray | None = None
    right: FloatArray | None = None
    errors: FloatArray | None = None
    method: str = "svd"
    dtype: str = "float32"

    @property
    def complete(self) -> bool:
        """Whether all singular values are there."""
        return self.values.shape[-1] == min(self.shape[-2:])

    @property
    def finite(self) -> bool:
        """Whether the weights were: NaN or Inf among them leaves nothing to measure."""
        return bool(np.isfinite(self.values).all())

    @property
    def collapsed(self) -> bool:
        """Whether all weights are zero."""
        return self.values.size > 0 and not self.values.any()


@dataclass(frozen=True)
class PairAlignment:
    """How two consecutive layers aligned at one step.

    Args:
        diagonal: (k,) entries of the alignment's diagonal.
        score: the mean of the first of them.
        baseline: what independent random directions give on average.
    """

    diagonal: tuple[float, ...]
    score: float
    baseline: float
