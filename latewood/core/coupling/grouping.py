"""Turns the labels of a traced run into channel groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from latewood.core.coupling.consequences import settle
from latewood.core.coupling.labels import NONE, Labels
from latewood.core.coupling.plan import Barrier, ChannelGroup, ChannelPlan, Member, Resized

__all__ = ["gather_plan"]

_Axis = tuple[str, int]


def gather_plan(labels: Labels, order: Sequence[str]) -> ChannelPlan:
    """Gathers channels that sit on the same axes, equally often, into groups.

    Args:
        labels: what a run left behind.
        order: names of the model's tensors in order of registration.

    Returns:
        The groups, in that order.
    """
    _settle_elements(labels)
    follows: dict[int, list[Resized]] = {}
    for attribute, counted in settle(labels).items():
        for channel, count in counted.items():
            follows.setdefault(channel, []).append(Resized(attribute.module, attribute.name, count))
    place = {name: position for position, name in enumerate(order)}
    axes = sorted(labels.axes, key=lambda axis: (place[axis[0]], axis[1]))
    positions: dict[int, dict[int, list[int]]] = {}
    for number, axis in enumerate(axes):
        for index, channel in enumerate(labels.channels(labels.axes[axis]).tolist()):
            positions.setdefault(channel, {}).setdefault(number, []).append(index)
    held: dict[int, dict[Barrier, None]] = {}
    for barred, barrier in labels.barriers:
        for channel in labels.channels(barred).unique().tolist():
            held.setdefault(channel, {})[barrier] = None
    alike: dict[tuple[tuple[tuple[int, int], ...], tuple[Barrier, ...]], list[int]] = {}
    for channel, where in positions.items():
        signature = tuple((number, len(indices)) for number, indices in where.items())
        alike.setdefault((signature, tuple(held.get(channel, ()))), []).append(channel)

    groups: list[tuple[tuple[int, int], ChannelGroup]] = []
    for (signature, barriers), channels in alike.items():
        numbers = [number for number, _ in signature]
        made = [number for number in numbers if "producer" in labels.roles[axes[number]]]
        first = (made or numbers)[0]
        channels.sort(key=lambda channel: positions[channel][first][0])
        members = tuple(
            Member(*axes[number], role, indices)
            for number in numbers
            for indices in [torch.tensor([positions[channel][number] for channel in channels])]
            for role in labels.roles[axes[number]]
        )
        layer = axes[first][0].rpartition(".")[0] or axes[first][0]
        resized = tuple(
            dict.fromkeys(each for channel in channels for each in follows.get(channel, ()))
        )
        name = layer if made else f"{layer}.inputs"
        start = (first, positions[channels[0]][first][0])
        groups.append((start, ChannelGroup(name, len(channels), members, barriers, resized)))
    groups.sort(key=lambda item: item[0])
    return ChannelPlan(tuple(_distinct(group for _, group in groups)))


def _distinct(groups: Iterator[ChannelGroup]) -> Iterator[ChannelGroup]:
    used: dict[str, int] = {}
    for group in groups:
        used[group.name] = used.get(group.name, 0) + 1
        count = used[group.name]
        name = group.name if count == 1 else f"{group.name}#{count}"
        yield ChannelGroup(name, group.width, group.members, group.barriers, group.resized)


def _settle_elements(labels: Labels) -> None:
    """Finds, for tensors that were labelled element by element, the axis that holds channels."""
    for name, atoms in labels.elements.items():
        channels = labels.channels(atoms)
        shared = (labels.components.sizes(channels) > 1) & (channels != NONE)
        found = {
            axis: chosen
            for axis in range(atoms.ndim)
            if (chosen := _along(atoms, channels, shared, axis)) is not None
        }
        if not bool(shared.any()):
            continue
        if not found or any(known == name for known, _ in labels.axes):
            labels.bar(atoms, "mixed", f"{name} holds channels along more than one axis")
            continue
        axis = max(found, key=lambda each: len(labels.channels(found[each]).unique()))
        labels.axes[name, axis] = found[axis]
        labels.roles[name, axis] = ["per_channel"]


def _along(atoms: Tensor, channels: Tensor, shared: Tensor, axis: int) -> Tensor | None:
    """One label an index of an axis, if that index alone tells the channel; elements that met
    nothing (rows of a position table beyond the example's length) have no say."""
    rows, counted = channels.movedim(axis, 0).flatten(1), shared.movedim(axis, 0).flatten(1)
    first = counted.int().argmax(1, keepdim=True)
    if bool(((rows != rows.gather(1, first)) & counted).any()):
        return None
    return atoms.movedim(axis, 0).flatten(1).gather(1, first).flatten()
