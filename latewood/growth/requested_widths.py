"""Which groups a request for widths means, and whether they can have them."""

from __future__ import annotations

import math
from collections.abc import Mapping

from latewood.core import ChannelGroup, ChannelPlan
from latewood.core.coupling.plan import BarrierKind
from latewood.errors import RequestError, invalid, listed, nearest
from latewood.growth.initialisations import Init

__all__ = ["allowed_barriers", "group_named", "widened_groups"]


def widened_groups(
    plan: ChannelPlan, widths: Mapping[str, int], init: Init = "pair"
) -> dict[str, int]:
    """The groups that a request for widths means, checked; those that stay are left out.

    Args:
        plan: of the model.
        widths: by name of a group, or of a layer that makes one.
        init: how new channels are made: pairs are even in number.

    Returns:
        The new width by name of the group.

    Raises:
        RequestError: as ``widen``.
    """
    wanted: dict[str, tuple[str, int]] = {}
    for key, width in widths.items():
        group = group_named(plan, key)
        argument = f"widths[{key!r}]"
        if isinstance(width, bool) or not isinstance(width, int):
            raise invalid(argument, width, "an integer")
        if group.name in wanted:
            raise RequestError(
                f"{argument}: that is {group.name}, as is {wanted[group.name][0]!r}; expected each "
                "group once"
            )
        wanted[group.name] = (key, width)
        held = [b.reason for b in group.barriers if b.kind not in allowed_barriers(init)]
        if width != group.width and held:
            raise RequestError(
                f"{argument}: its channels cannot change: " + "; ".join(dict.fromkeys(held))
            )
        _require_reachable(group, argument, width, init)
    return {name: width for name, (_, width) in wanted.items() if width != plan[name].width}


def allowed_barriers(init: Init) -> tuple[BarrierKind, ...]:
    """Kinds of barriers that an initialisation takes care of.

    Args:
        init: copies of all channels leave means and mean squares as they are, pairs are padded.
    """
    return ("normalised",) if init in ("pair", "replicate") else ()


def _require_reachable(group: ChannelGroup, argument: str, width: int, init: Init) -> None:
    if width < group.width:
        raise invalid(argument, width, f"at least {group.width}, the present width")
    pairs = 2 if init == "pair" and group.padding is None else 1
    step = math.lcm(pairs, group.multiple_of)
    if (width - group.width) % step:
        below = group.width + (width - group.width) // step * step
        why = "channels are added in pairs" if step == 2 else f"channels are added by {step}"
        raise invalid(argument, width, f"{below} or {below + step}: from {group.width} {why}")


def group_named(plan: ChannelPlan, key: str) -> ChannelGroup:
    """The group of a name, or the one whose channels a layer or a tensor of that name makes.

    Args:
        plan: of the model.
        key: the name.

    Raises:
        RequestError: there is none, or a layer makes channels of several.
    """
    by_name = {group.name: group for group in plan}
    if key in by_name:
        return by_name[key]
    made = [
        group
        for group in plan
        if any(
            m.tensor == key or m.tensor.rpartition(".")[0] == key for m in group.having("producer")
        )
    ]
    if len(made) == 1:
        return made[0]
    if made:
        names = ", ".join(group.name for group in made)
        raise invalid("widths", key, f"one of its groups {names}")
    raise invalid("widths", key, f"a group or a layer: {listed(by_name)}{nearest(key, by_name)}")
