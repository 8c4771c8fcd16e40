"""What a compiled step with rates by stage is told of a weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

__all__ = ["AxisRuns", "StageNumbers", "StagedStep"]

AxisRuns = tuple[list[int], list[int]]
"""Runs of positions along an axis: the end of each, and the rank of its stage."""


class StageNumbers(NamedTuple):
    r"""The numbers of a step of one stage's entries.

    .. math::
        d = g + \lambda p, \quad m \leftarrow \beta_1 m + r_1 d, \quad
        p \leftarrow p - \eta\, m

    and with second moments

    .. math::
        m \leftarrow m + r_1 (d - m), \quad v \leftarrow \beta_2 v + r_2 d^2, \quad
        p \leftarrow k\, p - \eta\, m / (\sqrt v / c + \epsilon)

    Args:
        size: the learning rate; with second moments over the first moment's correction (eta).
        keep: what decoupled weight decay leaves of a parameter, with second moments (k).
        l2: weight decay in the gradient (lambda).
        beta1: of the first moment.
        rest1: what a new direction counts there (r_1).
        beta2: of the second moment.
        rest2: what a new square counts there (r_2).
        correction: square root of the second moment's correction (c).
        eps: in the denominator.
        nesterov: 1 to look ahead, 0 else.
    """

    size: float
    keep: float = 1.0
    l2: float = 0.0
    beta1: float = 0.0
    rest1: float = 0.0
    beta2: float = 0.0
    rest2: float = 0.0
    correction: float = 1.0
    eps: float = 0.0
    nesterov: float = 0.0


@dataclass(frozen=True, slots=True)
class StagedStep:
    """The coming step of one weight.

    Args:
        parameter: float32, contiguous, on the CPU.
        gradient: like it.
        first: momentum, like it; None for none.
        second: second moment, like it; None for none.
        rows: runs along the first axis.
        columns: runs along the second axis; of one position where there is none.
        numbers: by rank; an entry has the larger rank of its row's and its column's.
        count: of the optimizer's steps, raised by the step; None for none.
    """

    parameter: Tensor
    gradient: Tensor
    first: Tensor | None
    second: Tensor | None
    rows: AxisRuns
    columns: AxisRuns
    numbers: Sequence[StageNumbers]
    count: Tensor | None = None
