"""Turns the labels of a traced run into channel groups."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from latewood.core.coupling.consequences import settle
from latewood.core.coupling.labels import NONE, Labels, varies_along
from latewood.core.coupling.norm_recognition import MetNorm
from latewood.core.coupling.padded_values import PaddedValues
from latewood.core.coupling.padding import with_padding
from latewood.core.coupling.plan import Barrier, ChannelGroup, ChannelPlan, Member, Resized

__all__ = ["gather_plan"]


def gather_plan(
    labels: Labels, order: Sequence[str], norms: Sequence[MetNorm], values: PaddedValues
) -> ChannelPlan:
    """Gathers channels that sit on the same axes, equally often, into groups.

    Args:
        labels: what a run left behind.
        order: names of the model's tensors in order of registration.
        norms: that the run went through.
        values: what new channels would hold.

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
    rows = [labels.axes[axis] for axis in axes]
    seats = _Seats.of(labels.channels(torch.cat(rows)), [len(row) for row in rows])
    barriers_of: dict[int, dict[Barrier, None]] = {}
    for barred, barrier in labels.barriers:
        for channel in labels.channels(barred).unique().tolist():
            barriers_of.setdefault(channel, {})[barrier] = None
    aligned = _aligned(labels)
    normalised: dict[int, list[MetNorm]] = {}
    for norm in norms:
        for channel in labels.channels(norm.labels).unique().tolist():
            normalised.setdefault(channel, []).append(norm)
    # Entries of queries and keys vanish in their products, not in a weight that reads them.
    scored = {
        channel for one in labels.scores for channel in labels.channels(one).unique().tolist()
    }
    reasons_of = {channel: tuple(several) for channel, several in barriers_of.items()}
    groups: list[tuple[tuple[int, int], ChannelGroup]] = []
    for members_of in seats.alike(reasons_of):
        barriers = reasons_of.get(int(seats.channels[members_of[0]]), ())
        where = seats.of_channels(members_of)
        made = [number for number in where if "producer" in labels.roles[axes[number]]]
        first = (made or list(where))[0]
        read = any("consumer" in labels.roles[axes[number]] for number in where)
        unread = made and not read and int(seats.channels[members_of[0]]) not in scored
        if unread and not barriers:
            barriers = (Barrier("unknown", "nothing that was seen reads them"),)
        # Channels of a group stand in the order in which its first axis has them.
        order_there = where[first][:, 0].argsort()
        members = tuple(
            Member(
                *axes[number],
                role,
                indices[order_there],
                _blocks(labels, axes[number], indices) if len(indices) == 1 else (),
            )
            for number, indices in where.items()
            for role in labels.roles[axes[number]]
        )
        channels = seats.channels[members_of].tolist() if follows or aligned or norms else []
        layer = axes[first][0].rpartition(".")[0] or axes[first][0]
        resized = tuple(
            dict.fromkeys(number for channel in channels for number in follows.get(channel, ()))
        )
        name = layer if made else f"{layer}.inputs"
        start = (first, int(where[first][:, 0].min()))
        wanted = [alignment for channel in channels for alignment in aligned.get(channel, ())]
        multiple = math.lcm(*(multiple for multiple, _ in wanted))
        reasons = tuple(dict.fromkeys(reason for _, reason in wanted))
        group = ChannelGroup(name, len(members_of), members, barriers, resized, multiple, reasons)
        over = {id(norm): norm for channel in channels for norm in normalised.get(channel, ())}
        groups.append((start, with_padding(group, list(over.values()), values)))
    groups.sort(key=lambda item: item[0])
    return ChannelPlan(tuple(_distinct(group for _, group in groups)))


@dataclass(frozen=True)
class _Seats:
    """Where each channel sits, sorted by channel, then axis, then position.

    Args:
        channels: each once.
        starts: where the seats of each channel begin, and where the last end.
        axes: number of the axis of each seat.
        positions: on that axis.
    """

    channels: np.ndarray
    starts: np.ndarray
    axes: np.ndarray
    positions: np.ndarray

    @classmethod
    def of(cls, channels: Tensor, sizes: Sequence[int]) -> _Seats:
        """Sorts what lies along all axes.

        Args:
            channels: at each position of each axis, axis after axis.
            sizes: of the axes.
        """
        channel = channels.numpy()
        axis = np.repeat(np.arange(len(sizes)), sizes)
        position = np.concatenate([np.arange(size) for size in sizes])
        # Stable: they stand axis by axis, position by position.
        order = np.argsort(channel, kind="stable")
        ascending = channel[order]
        starts = np.append(0, (ascending[1:] != ascending[:-1]).nonzero()[0] + 1)
        return cls(ascending[starts], np.append(starts, len(order)), axis[order], position[order])

    def alike(self, barriers: Mapping[int, tuple[Barrier, ...]]) -> Iterator[np.ndarray]:
        """Numbers of channels that sit on the same axes equally often and have the same barriers.

        Args:
            barriers: by channel.
        """
        # Sums of random numbers of the axes: equal for equal axes, else different almost surely.
        drawn = np.random.default_rng(0).integers(2**63, size=(2, self.axes.max() + 1))
        sums = np.add.reduceat(drawn[:, self.axes], self.starts[:-1], axis=1)
        kinds = {kind: number for number, kind in enumerate(dict.fromkeys(barriers.values()), 1)}
        kind_of = np.zeros(len(self.channels), dtype=np.int64)
        if barriers:
            numbers = np.array(list(barriers))
            places = np.searchsorted(self.channels, numbers)
            here = self.channels[places.clip(max=len(self.channels) - 1)] == numbers
            kind_of[places[here]] = np.array([kinds[kind] for kind in barriers.values()])[here]
        order = np.lexsort((*sums, kind_of))
        keys = np.stack([*sums, kind_of])[:, order]
        edges = (keys[:, 1:] != keys[:, :-1]).any(0).nonzero()[0] + 1
        # Sorting is stable: within a set the channels ascend.
        yield from np.split(order, edges)

    def of_channels(self, numbers: np.ndarray) -> dict[int, Tensor]:
        """By axis, the positions (channels, multiplicity) of channels that sit alike."""
        start = self.starts[numbers]
        one = slice(start[0], self.starts[numbers[0] + 1])
        axes, counts = np.unique(self.axes[one], return_counts=True)
        places: dict[int, Tensor] = {}
        offset = 0
        for axis, count in zip(axes.tolist(), counts.tolist(), strict=True):
            seats = start[:, None] + offset + np.arange(count)
            places[axis] = torch.from_numpy(self.positions[seats])
            offset += count
        return places


def _distinct(groups: Iterator[ChannelGroup]) -> Iterator[ChannelGroup]:
    used: dict[str, int] = {}
    for group in groups:
        used[group.name] = used.get(group.name, 0) + 1
        count = used[group.name]
        name = group.name if count == 1 else f"{group.name}#{count}"
        yield replace(group, name=name)


def _blocks(labels: Labels, axis: tuple[str, int], indices: Tensor) -> tuple[int, ...]:
    """Where blocks of the only channel begin; () if that cannot be told."""
    return labels.boundaries.blocks(labels.axes[axis], indices[0]) or ()


def _aligned(labels: Labels) -> dict[int, list[tuple[int, str]]]:
    """By channel, what the number of its kind must be a multiple of, and by which operation."""
    aligned: dict[int, list[tuple[int, str]]] = {}
    for alignment in labels.alignments:
        channels, counts = labels.channels(alignment.labels).unique(return_counts=True)
        for channel, count in zip(channels.tolist(), counts.tolist(), strict=True):
            multiple = alignment.multiple // math.gcd(alignment.multiple, count)
            if multiple > 1:
                aligned.setdefault(channel, []).append((multiple, alignment.reason))
    return aligned


def _settle_elements(labels: Labels) -> None:
    """Finds, for tensors that were labelled element by element, the axis that holds channels."""
    for name, atoms in labels.elements.items():
        channels = labels.channels(atoms)
        shared = (labels.components.sizes(channels) > 1) & (channels != NONE)
        rows = {
            axis: chosen
            for axis in range(atoms.ndim)
            if (chosen := _along(atoms, channels, shared, axis)) is not None
        }
        if not bool(shared.any()):
            continue
        if not rows or any(known == name for known, _ in labels.axes):
            labels.bar(atoms, "mixed", f"{name} holds channels along more than one axis")
            continue
        counts = {axis: len(labels.channels(row).unique()) for axis, row in rows.items()}
        likely = [axis for axis, count in counts.items() if count == max(counts.values())]
        if len(likely) > 1:
            likely = _as_long_as_others(labels, rows, likely)
        if len(likely) != 1:
            labels.bar(atoms, "mixed", f"{name} does not show which axis holds its channel")
            continue
        (axis,) = likely
        labels.axes[name, axis] = rows[axis]
        labels.roles[name, axis] = ["per_channel"]


def _as_long_as_others(
    labels: Labels, rows: Mapping[int, Tensor], axes: Sequence[int]
) -> list[int]:
    """Of axes that all hold one channel, those as long as an axis of a weight that holds it."""
    lengths = {
        (int(channels[0]), len(atoms))
        for atoms in labels.axes.values()
        if len(atoms) and not varies_along(channels := labels.channels(atoms), 0)
    }
    channel = {axis: int(labels.channels(rows[axis])[0]) for axis in axes}
    return [axis for axis in axes if (channel[axis], len(rows[axis])) in lengths]


def _along(atoms: Tensor, channels: Tensor, shared: Tensor, axis: int) -> Tensor | None:
    """One label an index of an axis, if that index alone tells the channel; elements that met
    nothing (rows of a position table beyond the example's length) have no say."""
    rows, counted = channels.movedim(axis, 0).flatten(1), shared.movedim(axis, 0).flatten(1)
    first = counted.int().argmax(1, keepdim=True)
    if bool(((rows != rows.gather(1, first)) & counted).any()):
        return None
    return atoms.movedim(axis, 0).flatten(1).gather(1, first).flatten()
