"""How wide each channel group of a network is in every phase of a schedule."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Sequence

from latewood.core import ChannelGroup, ChannelPlan
from latewood.core.coupling.preserving_fill import tied_obstacle
from latewood.errors import RequestError, invalid, nearest
from latewood.growth.growth_schedule import GrowthSchedule
from latewood.growth.requested_widths import group_named

__all__ = ["growing_widths"]


def growing_widths(
    plan: ChannelPlan, schedule: GrowthSchedule, exclude: Sequence[str]
) -> dict[str, list[int]]:
    """Of each group that grows, its width in every phase, by the group's name.

    Args:
        plan: of the network at its first widths.
        schedule: says how wide each becomes; all groups that can grow if it names none.
        exclude: patterns on names of groups that keep their widths.

    Raises:
        RequestError: a name or a pattern that matches nothing, a width that cannot be reached, or
            nothing that grows.
    """
    if schedule.named:
        named = {group_named(plan, name).name: name for name in schedule.named}
        if len(named) < len(schedule.named):
            raise invalid("schedule", list(schedule.named), "each channel group once")
    else:
        named = {group.name: group.name for group in plan if _obstacle(group) is None}
    for pattern in exclude:
        matched = {name for name in named if fnmatch.fnmatch(name, pattern)}
        if not matched:
            raise invalid(
                "exclude", pattern, f"a pattern on {', '.join(named)}{nearest(pattern, named)}"
            )
        named = {name: key for name, key in named.items() if name not in matched}
    widths = {}
    for name, key in named.items():
        group = plan[name]
        if schedule.named and (obstacle := _obstacle(group)):
            raise RequestError(f"{name}: its channels cannot change: {obstacle}")
        listed = schedule.widths(key, group.width)
        if listed is not None:
            listed = listed if schedule.named else _in_units(listed, group)
            for width in listed:
                group.require_width(width, "widths")
        if listed is not None and listed[-1] > listed[0]:
            widths[name] = listed
    if not widths:
        held = "; ".join(dict.fromkeys(b.reason for group in plan for b in group.barriers))
        raise invalid(
            "model", "no channel group that grows", f"one that can ({held or 'no layers'})"
        )
    return widths


def _obstacle(group: ChannelGroup) -> str | None:
    """Why a group cannot grow; None if it can."""
    held = [barrier.reason for barrier in group.barriers if barrier.kind != "normalised"]
    if held or (group.barriers and group.padding is None):
        return "; ".join(dict.fromkeys(held or [barrier.reason for barrier in group.barriers]))
    if any(member.runs is None for member in group.members):
        return "one channel owns several positions, and nothing tells where those of another go"
    return tied_obstacle(group) if group.padding is None else group.padding.obstacle or None


def _in_units(widths: Sequence[int], group: ChannelGroup) -> list[int]:
    """Widths that grow by pairs of what operations can compute with: whole groups, say."""
    unit = 2 * group.multiple_of
    start = widths[0]
    steps = [math.floor((width - start) / unit + 0.5) for width in widths]
    return [start + unit * step for step in (*steps[:-1], max(1, steps[-1]))]
