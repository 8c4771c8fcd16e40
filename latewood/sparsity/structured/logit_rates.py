"""How fast an optimizer moves logits, and where they must start to grow in time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from torch import nn
from torch.optim import Optimizer

from latewood.errors import RequestError
from latewood.sparsity.structured.logit_dynamics import growth_logit

__all__ = ["ADAPTIVE_LR", "PLAIN_LR", "is_adaptive", "logit_group", "starting_logits"]

PLAIN_LR: Final = 0.1
"""Learning rate of logits under gradient descent with or without momentum."""
ADAPTIVE_LR: Final = 0.01
"""Under optimizers whose steps are of the size of the learning rate, whatever the gradient."""

_ADAPTIVE: Final = frozenset({"alpha", "betas", "rho", "lr_decay"})
"""Settings that only optimizers have which scale each gradient by its size."""
_MOST_NEGATIVE: Final = -16.0


def logit_group(optimizer: Optimizer, logits: nn.Parameter) -> dict[str, Any]:
    """The optimizer's group that holds the logits.

    Raises:
        RequestError: there is none.
    """
    for group in optimizer.param_groups:
        if any(parameter is logits for parameter in group["params"]):
            return group
    raise RequestError(
        "optimizer: it does not hold the logits of the structures; build it on "
        "latewood.core.parameter_groups(model, [method])"
    )


def is_adaptive(group: dict[str, Any]) -> bool:
    """Whether a group's optimizer is of Adam's kind."""
    return "momentum" not in group or not _ADAPTIVE.isdisjoint(group)


def starting_logits(
    group: dict[str, Any], weights: Sequence[float], steps: float
) -> tuple[float, ...]:
    """From where the penalty alone carries logits to 0 in so many steps.

    Args:
        group: of the logits, with learning rate and momentum.
        weights: (lambda) at the start, one for each kind of structure.
        steps: optimizer steps.

    Returns:
        One logit for each weight, at least -16.
    """
    if is_adaptive(group):
        return tuple(max(_MOST_NEGATIVE, -group["lr"] * steps) for _ in weights)
    time = steps * group["lr"] / (1.0 - group["momentum"])
    return tuple(max(_MOST_NEGATIVE, growth_logit(weight=weight, time=time)) for weight in weights)
