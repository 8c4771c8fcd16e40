"""Power laws in the tail of a spectrum, as WeightWatcher reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["PowerLaw", "power_law"]

_FEWEST: Final = 10
"""Positive eigenvalues below which no law is fitted."""

_ZERO: Final = 1e-6
"""Share of the largest singular value below which one counts as 0, its rounding being larger."""

_BLOCK: Final = 2**21
"""Entries of the distances between two distributions that are made at a time."""


@dataclass(frozen=True)
class PowerLaw:
    """A power law fitted to the tail of a spectrum.

    Args:
        alpha: the exponent.
        xmin: the eigenvalue at which the tail begins.
        distance: Kolmogorov-Smirnov distance of tail and law: the largest difference of their
            distribution functions, in [0, 1]; above about 0.1 the law describes the tail badly.
    """

    alpha: float
    xmin: float
    distance: float


def power_law(singular_values: Tensor) -> PowerLaw | None:
    r"""Fits a power law to the tail of the eigenvalues of :math:`W^T W`.

    .. math:: p(\lambda) \propto \lambda^{-\alpha}, \quad \lambda \ge x_\min, \quad
        \alpha = 1 + n / \sum_i \ln(\lambda_i / x_\min)

    over the n eigenvalues :math:`\lambda = \sigma^2` of at least x_min, and of all x_min the one at
    which the Kolmogorov-Smirnov distance is smallest.

    Args:
        singular_values: (R,) in any order.

    Returns:
        The law; None for fewer than ten values above zero, for equal ones and for values that are
        not finite.

    Source: Clauset, Shalizi, Newman 2009, arXiv:0706.1062, sections 3.1 and 3.3; the quantities of
    Martin and Mahoney 2021, arXiv:1810.01075.
    """
    values = np.sort(singular_values.detach().double().cpu().numpy())
    if not len(values) or not np.isfinite(values).all() or values[-1] <= 0:
        return None
    positive = values[values > _ZERO * values[-1]]
    if len(positive) < _FEWEST:
        return None
    logs = 2 * np.log(positive)
    # Of equal values the first: the tail holds them all.
    starts = np.flatnonzero(np.append(True, np.diff(logs) > 0))
    starts = starts[logs[starts] < logs[-1]]
    if not len(starts):
        return None
    sums = np.cumsum(logs[::-1])[::-1]
    counts = len(logs) - starts
    alphas = 1 + counts / np.maximum(sums[starts] - counts * logs[starts], 1e-300)
    distances = _distances(logs, starts, alphas)
    best = int(distances.argmin())
    return PowerLaw(float(alphas[best]), float(np.exp(logs[starts[best]])), float(distances[best]))


def _distances(
    logs: NDArray[np.float64], starts: NDArray[np.intp], alphas: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The Kolmogorov-Smirnov distance of each tail from its law.

    Args:
        logs: logarithms of the eigenvalues, ascending.
        starts: where each tail begins.
        alphas: of the laws.
    """
    size = len(logs)
    places = np.arange(size)
    distances = []
    step = max(1, _BLOCK // size)
    for first in range(0, len(starts), step):
        begin, alpha = starts[first : first + step, None], alphas[first : first + step, None]
        law = -np.expm1((1 - alpha) * np.maximum(logs[None] - logs[begin], 0))
        below = (places[None] - begin) / (size - begin)
        apart = np.maximum(np.abs(law - below), np.abs(law - below - 1 / (size - begin)))
        distances.append(np.where(places[None] >= begin, apart, 0).max(1))
    return np.concatenate(distances)
