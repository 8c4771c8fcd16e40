"""Where the entries of an axis go when channels on it are removed or copied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from latewood.core.coupling.plan import ChannelGroup, ChannelPlan, Member
from latewood.core.coupling.trace import Axis

__all__ = ["AxisLayout", "moved_group"]


@dataclass(frozen=True)
class AxisLayout:
    """A new axis: its old size, the old position each new one holds, and which are copies.

    Args:
        size: of the old axis.
        source: old position by new position.
        copied: whether a new position holds a copy.
        kept: new position by old position, of what stays; -1 for what goes.
        copy_keys: of each copy, ascending, its old position and its channel's new number in one.
        copy_positions: the new position of each copy.
        channels: what the old position is multiplied by in a key.
    """

    size: int
    source: Tensor
    copied: Tensor
    kept: Tensor
    copy_keys: Tensor
    copy_positions: Tensor
    channels: int

    @classmethod
    def of(
        cls, axis: Axis, size: int, plan: ChannelPlan, chosen: Mapping[str, Sequence[int]]
    ) -> AxisLayout:
        """Works out where the entries of an axis go.

        Args:
            axis: name of the tensor, and the axis.
            size: of the axis.
            plan: of the model as it is.
            chosen: for a group's name, the channels that stay, then those that new ones copy.
        """
        stays = torch.ones(size, dtype=torch.bool)
        channels = 1 + max(len(wanted) for wanted in chosen.values())
        none = torch.zeros(0, dtype=torch.long)
        behind, sources, numbers = [none], [none], [none]
        for group in plan.owner(*axis):
            if group.name not in chosen:
                continue
            member = next(m for m in group.members if (m.tensor, m.axis) == axis)
            wanted = torch.tensor(chosen[group.name], dtype=torch.long)
            goes = torch.ones(group.width, dtype=torch.bool)
            goes[wanted] = False
            stays[member.indices[goes].flatten()] = False
            copies = wanted[group.width :]
            if not len(copies):
                continue
            new = torch.arange(group.width, len(wanted))
            for start, stop in member.runs or ((0, member.multiplicity),):
                block = member.indices[copies, start:stop]
                sources.append(block.flatten())
                numbers.append(new.repeat_interleave(stop - start))
                behind.append(member.indices[-1, stop - 1].expand(block.numel()))
        old = stays.nonzero().flatten()
        copied_from, number = torch.cat(sources), torch.cat(numbers)
        # Copies stand behind the position that ends their block, in the order in which they came.
        order = torch.argsort(torch.cat([2 * old, 2 * torch.cat(behind) + 1]), stable=True)
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order))
        kept = torch.full((size,), -1)
        kept[old] = place[: len(old)]
        keys, by_key = torch.sort(copied_from * channels + number)
        return cls(
            size,
            source=torch.cat([old, copied_from])[order],
            copied=order >= len(old),
            kept=kept,
            copy_keys=keys,
            copy_positions=place[len(old) :][by_key],
            channels=channels,
        )

    def moved(self, indices: Tensor, width: int) -> Tensor:
        """Where the positions of channels are on the new axis.

        Args:
            indices: old positions (channels, multiplicity), those of copies behind those that stay.
            width: number of channels before; what comes behind them are copies.
        """
        numbers = torch.arange(width, max(width, len(indices))).unsqueeze(1)
        keys = indices[width:] * self.channels + numbers
        places = torch.searchsorted(self.copy_keys, keys)
        return torch.cat([self.kept[indices[:width]], self.copy_positions[places]])


def moved_group(
    group: ChannelGroup,
    chosen: Mapping[str, Sequence[int]],
    layouts: Mapping[tuple[str, int], AxisLayout],
) -> ChannelGroup:
    """A group where its channels are on the new axes.

    Args:
        group: of the plan of the model as it was.
        chosen: for a group's name, the channels that stay, then those that new ones copy.
        layouts: of the axes that change.
    """
    if all((member.tensor, member.axis) not in layouts for member in group.members):
        return group
    wanted = chosen.get(group.name, range(group.width))
    chosen_channels = torch.tensor(list(wanted), dtype=torch.long)
    members: list[Member] = []
    for member in group.members:
        layout = layouts.get((member.tensor, member.axis))
        indices = member.indices[chosen_channels]
        if layout is not None:
            indices = layout.moved(indices, group.width)
        # One channel alone no longer shows its blocks.
        alone = len(indices) == 1 and member.runs is not None
        blocks = tuple(start for start, _ in member.runs or ()) if alone else ()
        members.append(replace(member, indices=indices, blocks=blocks))
    return replace(group, width=len(wanted), members=tuple(members))
