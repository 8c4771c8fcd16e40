"""Forgetting what an optimizer remembers of some parameters, whichever optimizer that is."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

__all__ = ["MomentumReset"]


class MomentumReset:
    """Empties the state of some parameters in the optimizer that updates them next.

    A method never sees the optimizer of the loop it runs in, and need not: the first step of
    whichever optimizer holds one of the parameters comes without their momentum and moments. A deep
    copy waits for the optimizer of the copied parameters.

    Args:
        parameters: whose state to forget.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = list(parameters)
        self._handle = register_optimizer_step_pre_hook(self._clear)

    @property
    def pending(self) -> bool:
        """Whether the optimizer's step is still to come."""
        return bool(self._parameters)

    def remove(self) -> None:
        """Calls it off if it is still to come, and takes the hook away."""
        self._parameters = []
        self._handle.remove()

    def _clear(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        wanted = {id(parameter) for parameter in self._parameters}
        held = [p for group in optimizer.param_groups for p in group["params"] if id(p) in wanted]
        for parameter in held:
            optimizer.state.pop(parameter, None)
        if held:
            # The hook itself stays: torch is going through all hooks, and fails if one goes away.
            self._parameters = []

    def __deepcopy__(self, memo: dict[int, Any]) -> MomentumReset:
        copied = MomentumReset(copy.deepcopy(self._parameters, memo))
        if not copied.pending:
            copied.remove()
        return copied
