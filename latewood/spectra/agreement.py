"""How far two matrices share their singular vectors: one weight at two times, or in two runs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from latewood.errors import RequestError, invalid
from latewood.spectra.baselines import random_agreement
from latewood.spectra.solvers.leading_vectors import Factors

__all__ = ["Agreement", "agreement", "subspace_agreement"]


@dataclass(frozen=True)
class Agreement:
    """Which singular vectors of one matrix are those of another.

    Args:
        matrix: (..., j, k), entry (j, k) for vectors j of the first and k of the second matrix.
        diagonal: (..., min(j, k)).
        score: (...), the mean of the diagonal's first entries.
        baseline: what unrelated matrices of this shape give on average.
    """

    matrix: Tensor
    diagonal: Tensor
    score: Tensor
    baseline: float


def agreement(first: Factors, second: Factors, *, top: int = 10) -> Agreement:
    r"""The agreement of the singular vectors of two matrices of one shape.

    .. math:: S_{jk} = |\langle u_j v_j^T, u'_k v_k'^T \rangle| = |u_j \cdot u'_k| |v_j \cdot v'_k|

    What the second matrix is, is the caller's question: the same weight at the end of training, at
    its beginning, one snapshot earlier, in another run, or under a mask.

    Args:
        first: factors of an m x n matrix, or of a batch.
        second: factors of a matrix of the same shape.
        top: entries of the diagonal that the score averages; all, if there are fewer.

    Returns:
        Matrix, diagonal and score in float64, entries in [0, 1]; NaN where a factor is.

    Raises:
        RequestError: shapes that differ, or ``top`` below 1.

    Source: arXiv 2408.11804, equation 5.
    """
    _require_same_shape(first, second)
    if top < 1:
        raise invalid("top", top, "an integer of at least 1")
    left = first.left.double().mT @ second.left.double()
    right = first.right.double().mT @ second.right.double()
    matrix = (left * right).abs()
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    baseline = random_agreement(*first.shape[-2:])
    return Agreement(matrix, diagonal, diagonal[..., :top].mean(-1), baseline)


def subspace_agreement(first: Factors, second: Factors, *, k: int = 10) -> tuple[Tensor, Tensor]:
    r"""How much of the span of the first k vectors two matrices share, on either side.

    .. math:: \|U_k^T U'_k\|_F^2 / k, \quad \|V_k^T V'_k\|_F^2 / k

    The mean squared cosine of the principal angles. Unlike single vectors, the span does not turn
    when singular values come close to each other.

    Args:
        first: factors of an m x n matrix, or of a batch.
        second: factors of a matrix of the same shape.
        k: dimension of the spans; as many as both have, if that is fewer.

    Returns:
        Output side and input side, each (...) float64 in [0, 1].

    Raises:
        RequestError: shapes that differ, or ``k`` below 1.
    """
    _require_same_shape(first, second)
    if k < 1:
        raise invalid("k", k, "an integer of at least 1")
    k = min(k, first.count, second.count)

    def shared(one: Tensor, other: Tensor) -> Tensor:
        overlap = one[..., :k].double().mT @ other[..., :k].double()
        return overlap.square().sum((-2, -1)) / k

    return shared(first.left, second.left), shared(first.right, second.right)


def _require_same_shape(first: Factors, second: Factors) -> None:
    if first.shape != second.shape:
        raise RequestError(
            f"second: got factors of a matrix of shape {second.shape}; expected the first's "
            f"shape {first.shape}"
        )
