"""What the tensors of an optimizer's state mean, so that they can follow a parameter that changes.

An optimizer is taught once: its class is registered with a ``StateRule``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch.optim import Optimizer

from latewood.errors import RequestError

__all__ = ["StateRule", "register_state_rule", "state_rule", "unwrapped_optimizer"]


@dataclass(frozen=True)
class StateRule:
    """How an optimizer's state goes with its parameter and the gradient.

    Args:
        powers: for each state tensor of the parameter's shape, the power of the gradient's scale
            that it is proportional to: 1 for a momentum, 2 for a second moment.
        filled: those where zero would let new entries take steps longer than the learning rate,
            under the step count of the old ones.
        entrywise: whether an entry's update depends on nothing but this entry, so that parts of a
            parameter can be updated as parameters of their own.
        counted: whether an entry with an empty state and a step count of its own takes the steps of
            a new parameter.
    """

    powers: Mapping[str, float]
    filled: tuple[str, ...] = ()
    entrywise: bool = True
    counted: bool = False


_RULES: Final[dict[type[Optimizer], StateRule]] = {}


def register_state_rule(optimizer: type[Optimizer], rule: StateRule) -> None:
    """Teaches what the state of an optimizer means; its subclasses inherit the rule.

    Args:
        optimizer: the class.
        rule: as described there; a rule that was registered before is replaced.
    """
    _RULES[optimizer] = rule


def state_rule(optimizer: Optimizer) -> StateRule:
    """The rule of an optimizer's class, or of the nearest class above it.

    Args:
        optimizer: possibly inside the wrapper of a trainer.

    Raises:
        RequestError: nothing was registered.
    """
    inner = unwrapped_optimizer(optimizer)
    for kind in type(inner).__mro__:
        if kind in _RULES:
            return _RULES[kind]
    known = ", ".join(sorted(kind.__name__ for kind in _RULES))
    name = type(inner).__name__
    raise RequestError(
        f"optimizers: nothing says what the state of {name} means; expected one of {known}, or "
        f"latewood.core.register_state_rule({name}, StateRule(...)) before"
    )


def unwrapped_optimizer(optimizer: Optimizer) -> Optimizer:
    """The optimizer inside the wrappers that trainers put around it, or itself."""
    inner = getattr(optimizer, "optimizer", None)
    return unwrapped_optimizer(inner) if isinstance(inner, Optimizer) else optimizer


_ADAM: Final = StateRule(
    {"exp_avg": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2},
    filled=("exp_avg_sq", "max_exp_avg_sq"),
    counted=True,
)
# The product of momenta (NAdam) and the rectification (RAdam) would have to be counted as well.
_COUNTED_OTHERWISE: Final = StateRule(_ADAM.powers, filled=_ADAM.filled)

register_state_rule(torch.optim.SGD, StateRule({"momentum_buffer": 1}))
register_state_rule(torch.optim.Adam, _ADAM)
register_state_rule(torch.optim.AdamW, _ADAM)
register_state_rule(torch.optim.NAdam, _COUNTED_OTHERWISE)
register_state_rule(torch.optim.RAdam, _COUNTED_OTHERWISE)
# A sum or a maximum that starts empty gives a new entry the first step of a new parameter.
register_state_rule(torch.optim.Adagrad, StateRule({"sum": 2}))
register_state_rule(torch.optim.Adamax, StateRule({"exp_avg": 1, "exp_inf": 1}, counted=True))
register_state_rule(torch.optim.Adadelta, StateRule({"square_avg": 2, "acc_delta": -2}))
register_state_rule(
    torch.optim.RMSprop,
    StateRule({"square_avg": 2, "momentum_buffer": 0, "grad_avg": 1}, filled=("square_avg",)),
)
register_state_rule(torch.optim.Muon, StateRule({"momentum_buffer": 1}, entrywise=False))
