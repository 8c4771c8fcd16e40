"""What a traced model says about its channels: groups of tensor axes that change size together."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Final, Literal

from torch import Tensor

from latewood.core.coupling.layer import Layer
from latewood.errors import RequestError, invalid

__all__ = [
    "Barrier",
    "BarrierKind",
    "ChannelGroup",
    "ChannelPlan",
    "Member",
    "Norm",
    "NormKind",
    "Padding",
    "Queries",
    "Resized",
    "Role",
    "ScoreScale",
]

NormKind = Literal["layer", "rms", "group", "unknown"]
Role = Literal["producer", "consumer", "per_channel"]
BarrierKind = Literal["input", "output", "lookup", "normalised", "fixed", "mixed", "unknown"]
ScoreScale = Literal["size", "fixed"]

_WIDEST_CELL: Final = 60


@dataclass(frozen=True)
class Member:
    """One axis of one tensor, and where each channel of the group sits on it.

    Args:
        tensor: name of the parameter or buffer, without the names of transformations on it.
        axis: the axis.
        role: "producer" (makes the channels), "consumer" (sums over them) or "per_channel".
        indices: int64 (width, multiplicity); row c lists the positions that channel c owns: one,
            H * W behind a flatten, four in an LSTM's gates.
        blocks: columns at which blocks begin whose positions stay neighbours, for groups that were
            traced with one channel, where the positions do not show it; () elsewhere, and where it
            cannot be told.
    """

    tensor: str
    axis: int
    role: Role
    indices: Tensor
    blocks: tuple[int, ...] = ()

    @property
    def runs(self) -> tuple[tuple[int, int], ...] | None:
        """Ranges of columns that lie next to each other for every channel: blocks.

        Behind a flatten a channel is one block of H * W positions; in a gated layer it has one a
        gate. None for one channel of which that cannot be told.
        """
        count = self.multiplicity
        starts = list(self.blocks)
        if not starts:
            if len(self.indices) == 1 < count:
                return None
            apart = ((self.indices[:, 1:] - self.indices[:, :-1]) != 1).any(0)
            starts = [0, *(apart.nonzero().flatten() + 1).tolist()]
        return tuple(itertools.pairwise([*starts, count]))

    @property
    def multiplicity(self) -> int:
        """Positions on the axis that one channel owns."""
        return self.indices.shape[1]


@dataclass(frozen=True)
class Barrier:
    """Why the channels of a group cannot change.

    Args:
        kind: "input" or "output" of the model; "lookup": rows that data points to; "normalised":
            a norm averages over the channels; "fixed": the code holds their number or positions;
            "mixed": an operation sums or compares them; "unknown": no rule for the operation.
        reason: the operation and where it is, in words.
    """

    kind: BarrierKind
    reason: str


@dataclass(frozen=True)
class Resized:
    """A number in a module that follows the width of a group, such as a count of heads.

    Args:
        module: qualified name of the module.
        attribute: the attribute's name.
        per_channel: by how much it changes with one channel.
    """

    module: str
    attribute: str
    per_channel: int = 1


@dataclass(frozen=True)
class Queries:
    """Where a tensor makes queries.

    Args:
        tensor: name of a weight or bias.
        axis: its axis of outputs.
        columns: of the group's member there: column j of its ``indices`` are places of queries.
    """

    tensor: str
    axis: int
    columns: tuple[int, ...]


@dataclass(frozen=True)
class Norm:
    """A norm whose statistics run over the channels of a group.

    Told by what it computes, whatever its class is called.

    Args:
        module: qualified name of the module that computes it.
        kind: "layer" subtracts the mean and divides by the deviation, "rms" divides by the root of
            the mean square, "group" does as "layer" within groups of channels; "unknown": none of
            these.
        weight: name of the scale, None without one.
        bias: name of the shift, None without one.
        eps: attribute of the module that is added to the variance or mean square; None if none was
            found that does so.
        offset: the scale is offset + weight: 1 in Gemma, else 0.
        on_root: whether eps is added to the root of the mean square instead.
    """

    module: str
    kind: NormKind
    weight: str | None = None
    bias: str | None = None
    eps: str | None = None
    offset: float = 0.0
    on_root: bool = False


@dataclass(frozen=True)
class Padding:
    """How a group that norms hold can become wider without a change of what they compute.

    New channels that hold the mean of the old ones leave mean and relative variance to a layer
    norm, zeros the relative mean square to an RMS norm.

    Args:
        kind: "mean" or "zero"; "" where neither fits.
        obstacle: why padding would change the function; "" if nothing stands against it.
        factors: tensors with an entry a channel that only ever multiply it. In channels padded with
            zeros they are not 0, which would leave them without any gradient.
        silent: tensors that read the channels where new ones hold 0, as they do behind a norm.
    """

    kind: Literal["mean", "zero", ""]
    obstacle: str
    factors: frozenset[str] = frozenset()
    silent: frozenset[str] = frozenset()


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that exist or vanish together in all their members.

    Args:
        name: the layer that makes the channels first.
        width: number of channels.
        members: the axes that hold them, in the model's order.
        barriers: why they cannot change; () if they can.
        resized: attributes that follow the width.
        multiple_of: widths that operations can compute with are multiples of this.
        aligned_by: the operations that want it, in words.
        score_scale: for entries of queries and keys, how the factor on their scores goes with their
            number: "size" (one over its root) or "fixed"; None for all other channels.
        queries: of entries of queries and keys, what makes the queries.
        norms: what normalises over the channels.
        padding: how the group can become wider nevertheless; None where only free groups can.
    """

    name: str
    width: int
    members: tuple[Member, ...]
    barriers: tuple[Barrier, ...] = ()
    resized: tuple[Resized, ...] = ()
    multiple_of: int = 1
    aligned_by: tuple[str, ...] = ()
    score_scale: ScoreScale | None = None
    queries: tuple[Queries, ...] = ()
    norms: tuple[Norm, ...] = ()
    padding: Padding | None = None

    @property
    def at_least(self) -> int:
        """The smallest width."""
        return self.multiple_of

    def require_width(self, width: int, argument: str) -> None:
        """Refuses a width that operations cannot compute with.

        Args:
            width: asked for.
            argument: name of the argument that asks.

        Raises:
            RequestError: no multiple of ``multiple_of``; the nearest ones are named.
        """
        unit = self.multiple_of
        if width % unit == 0:
            return
        below = width // unit * unit
        nearest = f"{below} or {below + unit}" if below else f"at least {unit}"
        expected = f"{nearest}, multiples of {unit} ({', '.join(self.aligned_by)})"
        raise invalid(f"{argument}[{self.name!r}]", f"{width} channels", expected)

    def require_blocks(self) -> None:
        """Refuses to add channels where nothing tells at which positions.

        Raises:
            RequestError: one channel owns several positions of which the model's code does not show
                whether they stay neighbours; the tensor is named.
        """
        for member in self.members:
            if member.runs is None:
                raise RequestError(
                    f"{self.name}: one channel has {member.multiplicity} positions on axis "
                    f"{member.axis} of {member.tensor}, and nothing tells where those of another "
                    "go; expected a group of at least two channels"
                )

    def in_units(self) -> ChannelGroup:
        """The group with ``multiple_of`` neighbouring channels taken for one."""
        unit = self.multiple_of
        if unit == 1:
            return self
        return replace(
            self,
            width=self.width // unit,
            members=tuple(
                replace(member, indices=member.indices.reshape(self.width // unit, -1), blocks=())
                for member in self.members
            ),
            resized=tuple(
                replace(number, per_channel=number.per_channel * unit) for number in self.resized
            ),
            multiple_of=1,
            aligned_by=(),
        )

    def having(self, role: Role) -> tuple[Member, ...]:
        """The members of one role."""
        return tuple(member for member in self.members if member.role == role)


@dataclass(frozen=True)
class ChannelPlan:
    """All channel groups of a model, those that can change and those that cannot.

    Args:
        groups: in the order in which the model's parameters are registered.
        layers: by name of the weight, every one of two or more axes that the run used.
    """

    groups: tuple[ChannelGroup, ...]
    layers: Mapping[str, Layer] = field(default_factory=dict)

    @property
    def free(self) -> tuple[ChannelGroup, ...]:
        """The groups without barriers."""
        return tuple(group for group in self.groups if not group.barriers)

    def __iter__(self) -> Iterator[ChannelGroup]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, name: str) -> ChannelGroup:
        """The group of that name.

        Raises:
            RequestError: there is none; the message lists the names.
        """
        if name not in self._by_name:
            raise invalid("group", name, f"one of {', '.join(self._by_name)}")
        return self._by_name[name]

    def owner(self, tensor: str, axis: int) -> tuple[ChannelGroup, ...]:
        """The groups with channels on one axis; a concatenation puts several there.

        Args:
            tensor: name of the parameter or buffer.
            axis: the axis.
        """
        return tuple(self._by_axis.get((tensor, axis), ()))

    @cached_property
    def _by_name(self) -> dict[str, ChannelGroup]:
        return {group.name: group for group in self.groups}

    @cached_property
    def _by_axis(self) -> dict[tuple[str, int], list[ChannelGroup]]:
        owners: dict[tuple[str, int], list[ChannelGroup]] = {}
        for group in self.groups:
            for axis in dict.fromkeys((member.tensor, member.axis) for member in group.members):
                owners.setdefault(axis, []).append(group)
        return owners

    def in_units(self) -> ChannelPlan:
        """The plan with the channels of aligned groups taken together, so that any number goes."""
        return replace(self, groups=tuple(group.in_units() for group in self.groups))

    def table(self) -> str:
        """The plan as text: one line a group with its width, its members and what holds it."""
        head = ("group", "width", "made by", "read by", "per channel", "cannot change because")
        rows = [head, *(_row(group) for group in self.groups)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        lines.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join(lines)


def _row(group: ChannelGroup) -> tuple[str, ...]:
    return (
        group.name,
        str(group.width),
        _axes(group.having("producer")),
        _axes(group.having("consumer")),
        _axes(group.having("per_channel")),
        "; ".join(dict.fromkeys(barrier.reason for barrier in group.barriers)),
    )


def _axes(members: tuple[Member, ...]) -> str:
    text = ", ".join(
        f"{member.tensor}[{member.axis}]"
        + (f" x{member.multiplicity}" if member.multiplicity > 1 else "")
        for member in members
    )
    return text if len(text) <= _WIDEST_CELL else f"{text[: _WIDEST_CELL - 4]} ..."
