"""Compiled optimizer steps in which the stages of a weight have rates and counts of their own.

There is no reference form here: where this one cannot work, ``growth.block_steps`` does the same
with torch's own operators.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from latewood.kernels.dispatch import native, native_for

__all__ = ["AxisRuns", "StageNumbers", "StagedStep", "fits", "take_steps"]

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


def fits(*tensors: Tensor) -> bool:
    """Whether the native form can work on these tensors' memory now.

    Args:
        tensors: a parameter, its gradient and its moments.
    """
    return tensors[0].is_contiguous() and native_for(*tensors) is not None


def take_steps(steps: Sequence[StagedStep]) -> None:
    """Takes the steps, in one call and one pass over memory.

    Args:
        steps: of weights that ``fits`` accepts.

    Raises:
        ValueError: something does not fit; nothing was written.
    """
    module = native()
    if module is None:
        raise ValueError("the compiled kernels are not there")
    module.staged_step(
        [step.parameter for step in steps],
        [step.gradient for step in steps],
        [step.first for step in steps],
        [step.second for step in steps],
        [step.rows for step in steps],
        [step.columns for step in steps],
        [list(chain.from_iterable(step.numbers)) for step in steps],
        torch.get_num_threads(),
    )
    counts = [step.count for step in steps if step.count is not None]
    if counts:
        torch._foreach_add_(counts, 1)
    # Autograd must notice, as it does when torch itself writes in place.
    torch.autograd.graph.increment_version([step.parameter for step in steps])
