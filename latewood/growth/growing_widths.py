"""How wide each channel group of a network is in every phase of a schedule."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from latewood.core import ChannelPlan
from latewood.errors import invalid, nearest
from latewood.growth.group_names import group_named
from latewood.growth.growth_schedule import GrowthSchedule

__all__ = ["growing_widths"]


def growing_widths(
    plan: ChannelPlan, schedule: GrowthSchedule, exclude: Sequence[str]
) -> dict[str, list[int]]:
    """Of each group that grows, its width in every phase, by the group's name.

    Args:
        plan: of the network at its first widths.
        schedule: says how wide each becomes; all groups without barriers if it names none.
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
        named = {group.name: group.name for group in plan.free}
    for pattern in exclude:
        matched = {name for name in named if fnmatch.fnmatch(name, pattern)}
        if not matched:
            raise invalid(
                "exclude", pattern, f"a pattern on {', '.join(named)}{nearest(pattern, named)}"
            )
        named = {name: key for name, key in named.items() if name not in matched}
    widths = {}
    for name, key in named.items():
        listed = schedule.widths(key, plan[name].width)
        if listed is not None and listed[-1] > listed[0]:
            widths[name] = listed
    if not widths:
        held = "; ".join(dict.fromkeys(b.reason for group in plan for b in group.barriers))
        raise invalid(
            "model", "no channel group that grows", f"one that can ({held or 'no layers'})"
        )
    return widths
