"""What random matrices would give: the line to which a measured effective rank is compared."""

from __future__ import annotations

import math
from functools import cache

import numpy as np

from latewood.errors import invalid

__all__ = ["random_effective_rank"]


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
