"""Compiled optimizer steps in which the stages of a weight have rates and counts of their own.

Where this form cannot work, ``growth.block_steps`` lets torch's own optimizer do the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from latewood.kernels.dispatch import native, native_for
from latewood.kernels.staged_steps.reference_staged_steps import take_steps_reference
from latewood.kernels.staged_steps.step_data import AxisRuns, StagedStep, StageNumbers

__all__ = [
    "AxisRuns",
    "StageNumbers",
    "StagedStep",
    "fits",
    "take_steps",
    "take_steps_reference",
]


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
