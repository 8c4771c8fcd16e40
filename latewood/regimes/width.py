"""Width: when many parallel copies start together, alpha^2 k decides, not the predictor's scale."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from latewood.errors import invalid, require_count
from latewood.regimes.potentials import numbers

__all__ = ["effective_scale", "wide_start"]

_BLOCK = 2**21
"""Numbers that are drawn at once: a network of any width fits."""


def effective_scale(alpha: float, width: int) -> float:
    r"""The scale of the diagonal network to which a wide one with random weights is equivalent.

    .. math:: \mu = \alpha \sqrt{k / 2}

    As k grows, the limit of :math:`\beta_i = \langle U_i, V_i \rangle`, all weights drawn from
    N(0, alpha^2), is that of depth 2 from mu: ``limit(..., alpha=effective_scale(alpha, width))``.

    Args:
        alpha: standard deviation of a weight at the start, above 0.
        width: k.

    Raises:
        RequestError: a value out of range.

    Source: COLT 2020 (arXiv 2002.09277), theorem 4.
    """
    require_count("width", width)
    return float(float(numbers("alpha", alpha, least=0, open_end=True)) * (width / 2) ** 0.5)


def wide_start(size: int, width: int, alpha: float, *, seed: int) -> tuple[Tensor, Tensor]:
    r"""The start of a wide network with random weights, as ``biased_limit`` takes it.

    .. math:: A, B = (|U_i|^2 + |V_i|^2)/4 \pm \langle U_i, V_i \rangle / 2

    Args:
        size: number of features d.
        width: k, the columns of U and V; any number, drawn in blocks.
        alpha: standard deviation of a weight, above 0.
        seed: of the weights.

    Returns:
        A and B, (d,) each, float64: exact for this draw of the weights, at any width.

    Raises:
        RequestError: a value out of range.

    Source: derived from COLT 2020 (arXiv 2002.09277), section 5.
    """
    gram = random_gram(size, width, alpha, seed=seed, entries=_matching_rows)
    u, v, uv = gram[0], gram[1], gram[2]
    return (u + v) / 4 + uv / 2, (u + v) / 4 - uv / 2


def _matching_rows(u: Tensor, v: Tensor) -> Tensor:
    return torch.stack([(u * u).sum(1), (v * v).sum(1), (u * v).sum(1)])


def whole_gram(u: Tensor, v: Tensor) -> Tensor:
    """The products of all rows of U and V with each other."""
    both = torch.cat([u, v])
    return both @ both.T


def random_gram(
    size: int | tuple[int, int],
    width: int,
    alpha: float,
    *,
    seed: int,
    entries: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Sums over the columns of random U and V of what ``entries`` gives for a block of them."""
    rows = (size, size) if isinstance(size, int) else size
    for name, value in (("size", rows[0]), ("size", rows[1]), ("width", width)):
        require_count(name, value)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise invalid("seed", seed, "a whole number")
    scale = float(numbers("alpha", alpha, least=0, open_end=True))
    generator = torch.Generator().manual_seed(seed)
    total: Tensor | None = None
    block = max(1, _BLOCK // sum(rows))
    for first in range(0, width, block):
        columns = min(block, width - first)
        drawn = torch.randn(sum(rows), columns, generator=generator, dtype=torch.float64)
        part = entries(drawn[: rows[0]], drawn[rows[0] :])
        total = part if total is None else total + part
    assert total is not None
    return total * scale * scale
