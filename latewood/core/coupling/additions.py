"""New channels of a model that became wider: where they are, axis by axis."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from latewood.core.coupling.plan import ChannelPlan, Role

__all__ = ["Addition", "additions"]


@dataclass(frozen=True)
class Addition:
    """New channels of one group on one axis of one tensor.

    Args:
        tensor: name of the parameter or buffer.
        axis: the axis.
        group: name of the group.
        roles: what the axis does with the channels; more than one where a tensor is used twice.
        old: int64 (old width, multiplicity): where the channels that were there before are now.
        new: int64 (number of new channels, multiplicity): where the new ones are.
    """

    tensor: str
    axis: int
    group: str
    roles: frozenset[Role]
    old: Tensor
    new: Tensor


def additions(before: ChannelPlan, after: ChannelPlan) -> tuple[Addition, ...]:
    """Where a wider model has channels that it did not have.

    Args:
        before: the plan that ``widen_channels`` was given.
        after: the plan that it returned.

    Returns:
        Tensor by tensor, in the order in which the groups list them.
    """
    listed: dict[tuple[str, int, str], Addition] = {}
    for old, new in zip(before, after, strict=True):
        if new.width == old.width:
            continue
        for member in new.members:
            key = (member.tensor, member.axis, new.name)
            roles = listed[key].roles if key in listed else frozenset[Role]()
            listed[key] = Addition(
                member.tensor,
                member.axis,
                new.name,
                roles | {member.role},
                member.indices[: old.width],
                member.indices[old.width :],
            )
    return tuple(_by_tensor(listed.values()))


def _by_tensor(listed: Iterable[Addition]) -> Iterable[Addition]:
    of_tensor: dict[str, list[Addition]] = {}
    for addition in listed:
        of_tensor.setdefault(addition.tensor, []).append(addition)
    return (addition for several in of_tensor.values() for addition in several)
