"""Finding a channel group by its own name or by that of a layer that makes its channels."""

from __future__ import annotations

from latewood.core import ChannelGroup, ChannelPlan
from latewood.errors import invalid, nearest

__all__ = ["group_named"]


def group_named(plan: ChannelPlan, name: str) -> ChannelGroup:
    """The group of that name, or the one whose channels the layer of that name makes.

    Args:
        plan: of a model.
        name: of a group or a layer.

    Raises:
        RequestError: there is none, or the layer makes channels of several groups.
    """
    for group in plan:
        if group.name == name:
            return group
    made = [
        group
        for group in plan
        if any(member.tensor.rpartition(".")[0] == name for member in group.having("producer"))
    ]
    if len(made) != 1:
        names = [group.name for group in plan]
        which = (
            f"one of its groups {', '.join(group.name for group in made)}"
            if made
            else (
                f"the name of a layer or one of the groups {', '.join(names)}{nearest(name, names)}"
            )
        )
        raise invalid("widths", name, which)
    return made[0]
