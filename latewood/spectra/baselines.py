"""What random matrices would give: the line to which a measured effective rank is compared."""

from __future__ import annotations

import math
from functools import cache

import numpy as np

from latewood.errors import invalid

__all__ = ["random_agreement", "random_cosine", "random_effective_rank"]


@cache
def random_effective_rank(rows: int, columns: int) -> float:
    r"""The normalised effective rank ("exp") of a large matrix with independent random entries.

    With the aspect ratio :math:`\beta = \min(m, n) / \max(m, n)`, squared singular values follow
    the Marchenko-Pastur law, and

    .. math:: \text{NER} = E[\sigma] \exp(-E[\sigma \ln \sigma] / E[\sigma]),

    which is :math:`2 e^{4/3} / (3 \pi)` for square matrices (the quarter-circle law).

    Args:
        rows: m.
        columns: n.

    Returns:
        The limit for m, n to infinity at this ratio, in (0, 1]; 1 for a single row or column.

    Raises:
        RequestError: a side is smaller than 1.
    """
    for name, side in (("rows", rows), ("columns", columns)):
        if side < 1:
            raise invalid(name, side, "an integer of at least 1")
    if min(rows, columns) == 1:
        return 1.0
    if rows == columns:
        return 2 * math.exp(4 / 3) / (3 * math.pi)
    ratio = min(rows, columns) / max(rows, columns)
    # The cosine substitution removes the square-root edges of the density.
    nodes, weights = np.polynomial.legendre.leggauss(256)
    angles = np.pi / 2 * (nodes + 1)
    squares = 1 + ratio + 2 * math.sqrt(ratio) * np.cos(angles)
    density = weights * np.sin(angles) ** 2 / squares
    values = np.sqrt(squares)
    mean = float(density @ values)
    log_mean = float(density @ (values * np.log(values)))
    return mean / float(density.sum()) * math.exp(-log_mean / mean)


def random_cosine(dimension: int) -> float:
    r"""The mean absolute cosine of two independent random directions.

    .. math:: E|\cos| = \Gamma(d / 2) / (\sqrt{\pi}\, \Gamma((d + 1) / 2))
        \approx \sqrt{2 / (\pi d)}

    Args:
        dimension: d.

    Returns:
        The mean, in (0, 1].

    Raises:
        RequestError: a dimension below 1.
    """
    if dimension < 1:
        raise invalid("dimension", dimension, "an integer of at least 1")
    log_ratio = math.lgamma(dimension / 2) - math.lgamma((dimension + 1) / 2)
    return math.exp(log_ratio) / math.sqrt(math.pi)


def random_agreement(rows: int, columns: int) -> float:
    r"""The mean agreement of the singular vectors of unrelated m x n matrices.

    .. math:: E|\cos|_m E|\cos|_n \approx 2 / (\pi \sqrt{m n})

    Args:
        rows: m.
        columns: n.

    Returns:
        The mean, in (0, 1].

    Raises:
        RequestError: a side is smaller than 1.
    """
    return random_cosine(rows) * random_cosine(columns)
