"""The table of operations: what each does to channels and to dependence on the model's inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from latewood.core.coupling.attention_rules import ATTENTION_RULES
from latewood.core.coupling.data_movement_rules import MOVE_RULES
from latewood.core.coupling.dependence import RANDOM, DependenceRule
from latewood.core.coupling.dependence_rules import (
    DEPENDENCE_RULES,
    elementwise,
    expanded,
    moved,
    reshaped,
)
from latewood.core.coupling.einsum_rule import einsum_rule
from latewood.core.coupling.elementwise_rules import ELEMENTWISE_RULES
from latewood.core.coupling.layer_rules import LAYER_RULES
from latewood.core.coupling.position_rules import POSITION_RULES
from latewood.core.coupling.sequence_rules import SEQUENCE_RULES
from latewood.core.coupling.shuffle_rules import SHUFFLE_RULES
from latewood.core.coupling.traced_call import Call, Rule

__all__ = ["OPERATIONS", "OperationRule", "channel_rule", "dependence_rule"]


@dataclass(frozen=True)
class OperationRule:
    """What an operation does.

    Args:
        channels: how channels pass through it.
        dependence: how dependence on the model's inputs does; None depends on all it sees.
    """

    channels: Rule
    dependence: DependenceRule | None = None


_KINDS: Final[dict[Rule, DependenceRule]] = {
    ELEMENTWISE_RULES["add"]: elementwise,
    **dict.fromkeys(
        (MOVE_RULES[name] for name in ("permute", "cat", "repeat", "repeat_interleave")), moved
    ),
    **dict.fromkeys(
        (MOVE_RULES[name] for name in ("view", "view_as", "flatten", "unflatten")), reshaped
    ),
    MOVE_RULES["expand"]: expanded,
    **dict.fromkeys(
        (
            POSITION_RULES[name]
            for name in (
                *("getitem", "select", "narrow", "index_select", "gather"),
                *("chunk", "split", "unbind", "roll", "flip"),
            )
        ),
        moved,
    ),
}
"""What kind of operation it is, by what it does to channels."""
_OF_ITS_OWN: Final = ("get", "rrelu")
"""Operations that are of their kind for channels only, beside those that draw."""


def _taught(name: str, channels: Rule) -> OperationRule:
    dependence = DEPENDENCE_RULES.get(name)
    draws = any(part in name for part in RANDOM)
    if dependence is None and not draws and name not in _OF_ITS_OWN:
        dependence = _KINDS.get(channels)
    return OperationRule(channels, dependence)


OPERATIONS: Final[dict[str, OperationRule]] = {
    name: _taught(name, channels)
    for name, channels in {
        **ELEMENTWISE_RULES,
        **MOVE_RULES,
        **POSITION_RULES,
        **LAYER_RULES,
        "einsum": einsum_rule,
        **ATTENTION_RULES,
        **SEQUENCE_RULES,
        **SHUFFLE_RULES,
    }.items()
}
"""By the name of the operation."""


def channel_rule(name: str) -> Rule:
    """How channels pass through an operation; one that is unknown bars those that go in."""
    return OPERATIONS[name].channels if name in OPERATIONS else Call.unknown


def dependence_rule(name: str) -> DependenceRule | None:
    """How dependence on the inputs passes through an operation; None depends on all it sees."""
    return OPERATIONS[name].dependence if name in OPERATIONS else None
