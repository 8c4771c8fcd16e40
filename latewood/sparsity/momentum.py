"""Forgetting what an optimizer remembers of some parameters, whichever optimizer that is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

__all__ = ["clear_before_next_step"]


def clear_before_next_step(
    parameters: Sequence[nn.Parameter], done: Callable[[], None]
) -> Callable[[], None]:
    """Empties the state of some parameters in the optimizer that updates them next.

    A method never sees the optimizer of the loop it runs in, and need not: the first step of
    whichever optimizer holds one of the parameters comes without their momentum and moments.

    Args:
        parameters: whose state to forget.
        done: called when it has happened.

    Returns:
        What calls it off.
    """
    wanted = {id(parameter) for parameter in parameters}

    def clear(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        held = [p for group in optimizer.param_groups for p in group["params"] if id(p) in wanted]
        if held:
            for parameter in held:
                optimizer.state.pop(parameter, None)
            handle.remove()
            done()

    handle = register_optimizer_step_pre_hook(clear)
    return lambda: handle.remove()
