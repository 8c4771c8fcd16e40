"""Changes numbers of channels in place: tensors, attributes, optimizer state; removes channels."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from latewood.core.coupling.attributes import Sizes
from latewood.core.coupling.layer import Layer
from latewood.core.coupling.plan import BarrierKind, ChannelGroup, ChannelPlan, Member
from latewood.core.coupling.trace import layer_tensors
from latewood.core.selection import stored_tensor
from latewood.core.transforms import Follows, transformations
from latewood.errors import RequestError, invalid

__all__ = [
    "Indices",
    "Resizing",
    "changeable",
    "replace_data",
    "selected",
    "slice_channels",
    "state_that_follows",
    "valid_indices",
]

Indices = Sequence[int] | Tensor


def slice_channels(
    model: nn.Module,
    plan: ChannelPlan,
    keep: Mapping[str, Indices],
    *,
    optimizers: Iterable[Optimizer] = (),
    allow: Collection[BarrierKind] = (),
) -> ChannelPlan:
    """Keeps a subset of the channels of some groups and removes the others everywhere, in place.

    Parameters stay the same objects; what changes loses its gradient. Buffers, what
    transformations say ``follows``, attributes such as ``out_channels`` or ``num_groups``, and the
    optimizers' state follow. The function of the model is kept when nothing reads the removed
    channels. Wrappers with buckets (DDP) must be built anew. If the request is wrong, nothing is
    changed.

    Args:
        model: the model that was traced.
        plan: its plan.
        keep: for a group's name, the channels to keep, distinct; they stay in their order.
        optimizers: whose state is to follow.
        allow: kinds of barriers that the caller takes care of.

    Returns:
        The plan of the smaller model.

    Raises:
        RequestError: an unknown group, channels that are not there, a group behind a barrier, a
            width that is no multiple of the group's ``multiple_of``, a transformation's tensor of
            which nothing says how it follows, or an optimizer state whose shape is not its
            parameter's.
    """
    kept: dict[str, list[int]] = {}
    for name, chosen in keep.items():
        group = changeable(plan, name, allow)
        indices = sorted(valid_indices(chosen, group, "keep"))
        if not indices or len(set(indices)) < len(indices):
            raise invalid(f"keep[{name!r}]", list(indices), "distinct channels, at least one")
        group.require_width(len(indices), "keep")
        kept[name] = indices
    return Resizing.of(model, plan, kept, optimizers).apply()


def changeable(plan: ChannelPlan, name: str, allow: Collection[BarrierKind]) -> ChannelGroup:
    """The group of a name, refused if a barrier holds it that is not allowed.

    Args:
        plan: of the model.
        name: of the group.
        allow: kinds of barriers that do not count.

    Raises:
        RequestError: no such group, or one that cannot change.
    """
    group = plan[name]
    held = [barrier for barrier in group.barriers if barrier.kind not in allow]
    if held:
        raise RequestError(
            f"{name}: its channels cannot change: "
            + "; ".join(dict.fromkeys(barrier.reason for barrier in held))
        )
    return group


def valid_indices(indices: Indices, group: ChannelGroup, argument: str) -> list[int]:
    """Channels of a group as a list, refused if one is not there.

    Args:
        indices: numbers of channels.
        group: that they belong to.
        argument: what the caller's argument is called.

    Raises:
        RequestError: a number that is no channel of the group.
    """
    listed = indices.tolist() if isinstance(indices, Tensor) else list(indices)
    if any(type(each) is not int or not 0 <= each < group.width for each in listed):
        raise invalid(
            f"{argument}[{group.name!r}]", listed, f"integers from 0 to {group.width - 1}"
        )
    return listed


@dataclass(frozen=True)
class _Layout:
    """A new axis.

    Args:
        size: the old size.
        source: the old position that each new one holds.
        copied: which of the new ones are copies.
        places: the new position of each old one; of those that are gone any.
        copies: by old position and number of the new channel, where its copy is.
    """

    size: int
    source: Tensor
    copied: Tensor
    places: Tensor
    copies: dict[tuple[int, int], int]


@dataclass(frozen=True)
class Resizing:
    """A change of numbers of channels, all checked and not yet made.

    Args:
        plan: of the model as it is.
        chosen: for a group's name, the channel that each of the new model is or copies.
        layouts: by tensor and axis.
        changes: of tensors.
        layers: whose attributes follow their tensors.
        counts: module, attribute and new value of what else follows.
    """

    plan: ChannelPlan
    chosen: Mapping[str, Sequence[int]]
    layouts: Mapping[tuple[str, int], _Layout]
    changes: Sequence[_Change]
    layers: Sequence[Sizes]
    counts: Sequence[tuple[nn.Module, str, int]]

    @classmethod
    def of(
        cls,
        model: nn.Module,
        plan: ChannelPlan,
        chosen: Mapping[str, Sequence[int]],
        optimizers: Iterable[Optimizer],
    ) -> Resizing:
        """Checks a change and works out what it does, without doing it.

        Args:
            model: that was traced, or another of the same structure.
            plan: its plan.
            chosen: for a group's name, the channels that stay, then those that new ones copy.
            optimizers: whose state is to follow.

        Raises:
            RequestError: a transformation's tensor of which nothing says how it follows, or an
                optimizer state whose shape is not its parameter's.
        """
        places = dict(layer_tensors(model))
        layouts: dict[tuple[str, int], _Layout] = {}
        for group in plan:
            for member in group.members if group.name in chosen else ():
                key = (member.tensor, member.axis)
                if key not in layouts:
                    module, name = places[member.tensor]
                    size = stored_tensor(module, name).shape[member.axis]
                    layouts[key] = _layout(key, size, plan, chosen)
        modules = {id(module): module for name, _ in layouts for module in [places[name][0]]}
        changes = [
            change
            for (name, axis), layout in layouts.items()
            for change in _changes(*places[name], axis, layout, list(optimizers))
        ]
        layers = [Sizes.of(module) for module in modules.values()]
        return cls(plan, chosen, layouts, changes, layers, _counts(model, plan, chosen))

    def apply(self) -> ChannelPlan:
        """Makes the change; returns the plan of what the model is then."""
        for change in self.changes:
            change.apply()
        for layer in self.layers:
            layer.refresh()
        for module, attribute, value in self.counts:
            setattr(module, attribute, value)
        layers = self.plan.layers.items()
        facts = {name: _resized(layer, self.layouts) for name, layer in layers}
        groups = tuple(_moved(group, self.chosen, self.layouts) for group in self.plan)
        return ChannelPlan(groups, facts)


def _resized(layer: Layer, layouts: Mapping[tuple[str, int], _Layout]) -> Layer:
    def source(axis: int) -> tuple[int, Tensor] | None:
        layout = layouts.get((layer.weight, axis))
        return None if layout is None else (layout.size, layout.source)

    return layer.resized(source)


def _layout(
    key: tuple[str, int], size: int, plan: ChannelPlan, chosen: Mapping[str, Sequence[int]]
) -> _Layout:
    stays = torch.ones(size, dtype=torch.bool)
    behind: dict[int, list[tuple[int, int]]] = {}
    for group in plan.owner(*key):
        if group.name not in chosen:
            continue
        member = next(m for m in group.members if (m.tensor, m.axis) == key)
        wanted = chosen[group.name]
        gone = sorted(set(range(group.width)) - set(wanted))
        stays[member.indices[gone].flatten()] = False
        for start, stop in member.runs or ((0, member.multiplicity),):
            last = int(member.indices[-1, stop - 1])
            for number, channel in enumerate(wanted[group.width :], start=group.width):
                block = member.indices[channel, start:stop].tolist()
                behind.setdefault(last, []).extend((old, number) for old in block)
    if not behind:
        source = stays.nonzero().flatten()
        copied = torch.zeros(len(source), dtype=torch.bool)
        return _Layout(size, source, copied, stays.cumsum(0) - 1, {})
    return _with_copies(stays, behind)


def _with_copies(stays: Tensor, behind: Mapping[int, list[tuple[int, int]]]) -> _Layout:
    """An axis where copies, each with the number of its channel, come behind some positions."""
    source: list[int] = []
    copied: list[bool] = []
    places: list[int] = []
    copies: dict[tuple[int, int], int] = {}
    for old, there in enumerate(stays.tolist()):
        places.append(len(source))
        if there:
            source.append(old)
            copied.append(False)
        for position, number in behind.get(old, ()):
            copies[position, number] = len(source)
            source.append(position)
            copied.append(True)
    tensors = torch.tensor(source), torch.tensor(copied), torch.tensor(places)
    return _Layout(len(stays), *tensors, copies)


@dataclass(frozen=True)
class _Change:
    """One tensor about to be rebuilt along an axis."""

    tensor: Tensor
    axis: int
    layout: _Layout
    start: float | None = None

    def apply(self) -> None:
        """Replaces the tensor's data; the tensor stays the same object."""
        tensor, layout = self.tensor, self.layout
        with torch.no_grad():
            data = selected(tensor, {self.axis: layout.source})
            if self.start is not None:
                copies = layout.copied.nonzero().flatten().to(data.device)
                data.index_fill_(self.axis, copies, self.start)
        replace_data(tensor, data)


def selected(tensor: Tensor, positions: Mapping[int, Tensor]) -> Tensor:
    """A tensor's entries at some positions of some axes.

    Args:
        tensor: any tensor.
        positions: by axis, int64.
    """
    data = tensor.detach()
    for axis, chosen in positions.items():
        data = data.index_select(axis, chosen.to(data.device))
    return data


def state_that_follows(
    parameter: Tensor, optimizer: Optimizer, name: str
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of an optimizer's state that change size with a parameter, by their keys.

    Args:
        parameter: about to change size.
        optimizer: that may have a state for it.
        name: of the parameter.

    Raises:
        RequestError: a tensor of another shape, which is no count of steps.
    """
    for key, value in optimizer.state.get(parameter, {}).items():
        if not isinstance(value, Tensor):
            continue
        if value.shape == parameter.shape:
            yield key, value
        elif value.dim() >= 2 or value.numel() != 1:
            raise RequestError(
                f"optimizer: its {key} of {name} has shape {tuple(value.shape)}; "
                f"expected the parameter's {tuple(parameter.shape)}, to change size with it"
            )


def replace_data(tensor: Tensor, data: Tensor) -> None:
    """Gives a tensor other data, of any shape; it stays the same object and loses its gradient.

    Args:
        tensor: a parameter, a buffer, or a tensor of an optimizer's state.
        data: of the same dtype and device.
    """
    if tensor.ndim == 4 == data.ndim and not tensor.is_contiguous():
        data = data.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        if tensor.requires_grad:
            # Makes torch forget the node that collects the gradient: while an old loss is
            # alive it would live on with the old shape. A change of dtype is what does it.
            other = torch.float32 if data.dtype is torch.float64 else torch.float64
            tensor.data = torch.empty(0, dtype=other, device=data.device)
        tensor.data = data
    tensor.grad = None


def _changes(
    module: nn.Module, name: str, axis: int, layout: _Layout, optimizers: Sequence[Optimizer]
) -> list[_Change]:
    stored = stored_tensor(module, name)
    changes = []
    for tensor, where, start in [(stored, axis, None), *_followers(module, name, axis)]:
        changes.append(_Change(tensor, where, layout, start))
        for optimizer in optimizers:
            for _, value in state_that_follows(tensor, optimizer, name):
                changes.append(_Change(value, where, layout, start=0.0))
    return changes


def _followers(
    module: nn.Module, name: str, axis: int
) -> Iterator[tuple[Tensor, int, float | None]]:
    """The tensors of a weight's transformations that change with one of its axes.

    Each comes with the axis of its own that changes, and with what new entries start with.
    """
    shape = stored_tensor(module, name).shape
    for transformation in transformations(module, name):
        declared: Mapping[str, Follows] = getattr(transformation, "follows", {})
        tensors = [*transformation.named_parameters(), *transformation.named_buffers()]
        for tensor_name, tensor in tensors:
            follows = declared.get(tensor_name)
            if follows is None and tensor.numel() <= 1:
                continue
            if follows is None or (axes := _axes_in(tensor, shape, follows)) is None:
                kind = type(transformation).__name__
                raise RequestError(
                    f"{name}: {kind} holds {tensor_name} of shape {tuple(tensor.shape)} for a "
                    f"weight of shape {tuple(shape)}; expected {kind}.follows to say how it follows"
                )
            if axis in axes:
                yield tensor, axes[axis], follows.start


def _axes_in(tensor: Tensor, shape: torch.Size, follows: Follows) -> dict[int, int] | None:
    """The tensor's own axis by that of the weight; None if it does not have the shape it says."""
    if follows.axis is None:
        return {axis: axis for axis in range(len(shape))} if tensor.shape == shape else None
    if not -len(shape) <= follows.axis < len(shape):
        return None
    axis = follows.axis % len(shape)
    if tensor.shape == shape[axis : axis + 1]:
        return {axis: 0}
    broadcast = [size if position == axis else 1 for position, size in enumerate(shape)]
    return {axis: axis} if list(tensor.shape) == broadcast else None


def _counts(
    model: nn.Module, plan: ChannelPlan, chosen: Mapping[str, Sequence[int]]
) -> list[tuple[nn.Module, str, int]]:
    counts: dict[tuple[str, str], tuple[nn.Module, str, int]] = {}
    for name, wanted in chosen.items():
        group = plan[name]
        for each in group.resized:
            module = model.get_submodule(each.module)
            change = each.per_channel * (len(wanted) - group.width)
            key = (each.module, each.attribute)
            module, _, value = counts.get(key, (module, "", getattr(module, each.attribute)))
            counts[key] = (module, each.attribute, value + change)
    return list(counts.values())


def _moved(
    group: ChannelGroup,
    chosen: Mapping[str, Sequence[int]],
    layouts: Mapping[tuple[str, int], _Layout],
) -> ChannelGroup:
    wanted = chosen.get(group.name, range(group.width))
    members: list[Member] = []
    for member in group.members:
        layout = layouts.get((member.tensor, member.axis))
        indices = member.indices[list(wanted)]
        if layout is not None:
            added = [
                [layout.copies[old, number] for old in row]
                for number, row in enumerate(indices[group.width :].tolist(), start=group.width)
            ]
            indices = layout.places[indices[: group.width]]
            indices = torch.cat([indices, torch.tensor(added)]) if added else indices
        # One channel alone no longer shows its blocks.
        alone = len(indices) == 1 and member.runs is not None
        blocks = tuple(start for start, _ in member.runs or ()) if alone else ()
        members.append(replace(member, indices=indices, blocks=blocks))
    return replace(group, width=len(wanted), members=tuple(members))
