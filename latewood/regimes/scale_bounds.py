"""How small or large a start must be by the paper, and what a small one costs in time."""

from __future__ import annotations

import math

from latewood.errors import require_count
from latewood.regimes.potentials import numbers

__all__ = ["escape_time", "kernel_scale", "rich_scale"]


def rich_scale(l1_norm: float, size: int, tolerance: float) -> float:
    r"""The scale below which depth 2 is guaranteed to come close to the least l1 norm.

    .. math::
        \alpha \le \min\left(1, \sqrt{n_1}, (2(1+\epsilon) n_1)^{-(2+\epsilon)/(2\epsilon)},
        e^{-d/(\epsilon n_1)}\right)

    gives a norm of at most (1 + eps) n_1. The two first terms are ours, for the lemma behind the
    theorem to apply. The bound is loose.

    Args:
        l1_norm: n_1, the least l1 norm of an interpolant, above 0.
        size: number of features d.
        tolerance: eps, above 0 and below d.

    Raises:
        RequestError: a value out of range.

    Source: COLT 2020 (arXiv 2002.09277), theorem 2.
    """
    norm, eps = _positive("l1_norm", l1_norm), _positive("tolerance", tolerance)
    require_count("size", size)
    polynomial = (2 * (1 + eps) * norm) ** (-(2 + eps) / (2 * eps))
    return float(min(1.0, math.sqrt(norm), polynomial, math.exp(-size / (eps * norm))))


def kernel_scale(l2_norm: float, tolerance: float) -> float:
    r"""The scale above which depth 2 is guaranteed to come close to the least l2 norm.

    .. math:: \alpha \ge \sqrt{2 (1+\epsilon)(1 + 2/\epsilon) n_2}

    gives a squared norm of at most (1 + eps) n_2^2.

    Args:
        l2_norm: n_2, the least l2 norm of an interpolant, above 0.
        tolerance: eps, above 0.

    Raises:
        RequestError: a value out of range.

    Source: COLT 2020 (arXiv 2002.09277), theorem 2.
    """
    norm, eps = _positive("l2_norm", l2_norm), _positive("tolerance", tolerance)
    return math.sqrt(2 * (1 + eps) * (1 + 2 / eps) * norm)


def escape_time(correlation: float, *, depth: float, alpha: float, size: float = 1.0) -> float:
    r"""The time that gradient flow from a small unbiased start stays near its saddle.

    .. math:: t = \frac{\log(b / \alpha^2)}{8 m} \;(D = 2), \qquad
        t = \frac{\alpha^{2-D}}{2 D (D-2) m} \;(D > 2)

    Args:
        correlation: m, the largest entry of \|X^T y\|, above 0.
        depth: D, at least 2.
        alpha: scale of the start, above 0.
        size: b, that of the weight which leaves first; for D = 2.

    Raises:
        RequestError: a value out of range.

    Source: derived; not in the paper.
    """
    m, scale = _positive("correlation", correlation), _positive("alpha", alpha)
    d = float(numbers("depth", depth, least=2))
    if d == 2:
        return max(0.0, math.log(_positive("size", size) / scale**2)) / (8 * m)
    return float(scale ** (2 - d) / (2 * d * (d - 2) * m))


def _positive(name: str, value: float) -> float:
    return float(numbers(name, value, least=0, open_end=True))
