"""Optimizer steps with rates by stage in plain torch: the oracle of the compiled form."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from latewood.kernels.staged_steps.step_data import AxisRuns, StagedStep, StageNumbers

__all__ = ["take_steps_reference"]


@torch.no_grad()
def take_steps_reference(steps: Sequence[StagedStep]) -> None:
    """``take_steps`` in plain torch, with a map of each weight's ranks.

    Args:
        steps: of weights of any real dtype and layout.
    """
    for step in steps:
        weight = step.parameter
        ranks = torch.maximum(_ranks(step.rows)[:, None], _ranks(step.columns)[None, :])
        if weight.ndim == 1:
            ranks = ranks[:, 0]
        ranks = ranks.view(*ranks.shape, *(1,) * (weight.ndim - ranks.ndim)).to(weight.device)

        def by_entry(name: str, of: StagedStep = step, at: Tensor = ranks) -> Tensor:
            place = StageNumbers._fields.index(name)
            return of.parameter.new_tensor([numbers[place] for numbers in of.numbers])[at]

        direction = step.gradient + by_entry("l2") * weight
        move = direction
        if step.first is not None and step.second is not None:
            step.first.add_(by_entry("rest1") * (direction - step.first))
            step.second.copy_(
                by_entry("beta2") * step.second + by_entry("rest2") * direction.square()
            )
            scale = step.second.sqrt() / by_entry("correction") + by_entry("eps")
            move = step.first / scale
        elif step.first is not None:
            beta = by_entry("beta1")
            step.first.copy_(beta * step.first + by_entry("rest1") * direction)
            ahead = direction + beta * step.first
            move = torch.where(by_entry("nesterov") != 0, ahead, step.first)
        weight.copy_(by_entry("keep") * weight - by_entry("size") * move)
        if step.count is not None:
            step.count.add_(1)


def _ranks(runs: AxisRuns) -> Tensor:
    ends, ranks = map(torch.tensor, runs)
    return ranks.repeat_interleave(ends.diff(prepend=ends.new_zeros(1)))
