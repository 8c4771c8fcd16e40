"""Changes numbers of channels in place: tensors, attributes, optimizer state; removes channels."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from latewood.core.coupling.attributes import Sizes
from latewood.core.coupling.axis_layout import AxisLayout, moved_group
from latewood.core.coupling.followers import followers
from latewood.core.coupling.layer import Layer
from latewood.core.coupling.plan import BarrierKind, ChannelGroup, ChannelPlan
from latewood.core.coupling.trace import layer_tensors
from latewood.core.selection import stored_tensor
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
    chosen_channels: dict[str, list[int]] = {}
    for name, chosen in keep.items():
        group = changeable(plan, name, allow)
        indices = sorted(valid_indices(chosen, group, "keep"))
        if not indices or len(set(indices)) < len(indices):
            raise invalid(f"keep[{name!r}]", list(indices), "distinct channels, at least one")
        group.require_width(len(indices), "keep")
        chosen_channels[name] = indices
    return Resizing.of(model, plan, chosen_channels, optimizers).apply()


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
    barriers = [barrier for barrier in group.barriers if barrier.kind not in allow]
    if barriers:
        raise RequestError(
            f"{name}: its channels cannot change: "
            + "; ".join(dict.fromkeys(barrier.reason for barrier in barriers))
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
    if any(type(number) is not int or not 0 <= number < group.width for number in listed):
        raise invalid(
            f"{argument}[{group.name!r}]", listed, f"integers from 0 to {group.width - 1}"
        )
    return listed


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
    layouts: Mapping[tuple[str, int], AxisLayout]
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
        layouts: dict[tuple[str, int], AxisLayout] = {}
        for group in plan:
            for member in group.members if group.name in chosen else ():
                key = (member.tensor, member.axis)
                if key not in layouts:
                    module, name = places[member.tensor]
                    size = stored_tensor(module, name).shape[member.axis]
                    layouts[key] = AxisLayout.of(key, size, plan, chosen)
        modules = {id(module): module for name, _ in layouts for module in [places[name][0]]}
        # A convolution of one group looks like any other; the plan still knows.
        grouped = {
            id(places[member.tensor][0])
            for group in plan
            for member in group.having("per_channel")
            if member.axis == 0 and places[member.tensor][1] == "weight"
        }
        changes = [
            change
            for (name, axis), layout in layouts.items()
            for change in _changes(name, *places[name], axis, layout, list(optimizers))
        ]
        layers = [Sizes.of(module, grouped=number in grouped) for number, module in modules.items()]
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
        groups = tuple(moved_group(group, self.chosen, self.layouts) for group in self.plan)
        return ChannelPlan(groups, facts)


def _resized(layer: Layer, layouts: Mapping[tuple[str, int], AxisLayout]) -> Layer:
    def source(axis: int) -> tuple[int, Tensor] | None:
        layout = layouts.get((layer.weight, axis))
        return None if layout is None else (layout.size, layout.source)

    return layer.resized(source)


@dataclass(frozen=True)
class _Change:
    """One tensor about to be rebuilt along an axis."""

    tensor: Tensor
    axis: int
    layout: AxisLayout
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
    name: str,
    module: nn.Module,
    attribute: str,
    axis: int,
    layout: AxisLayout,
    optimizers: Sequence[Optimizer],
) -> list[_Change]:
    stored = stored_tensor(module, attribute)
    changes = []
    for tensor, where, start in [(stored, axis, None), *followers(module, attribute, axis, name)]:
        changes.append(_Change(tensor, where, layout, start))
        for optimizer in optimizers:
            for _, value in state_that_follows(tensor, optimizer, name):
                changes.append(_Change(value, where, layout, start=0.0))
    return changes


def _counts(
    model: nn.Module, plan: ChannelPlan, chosen: Mapping[str, Sequence[int]]
) -> list[tuple[nn.Module, str, int]]:
    counts: dict[tuple[str, str], tuple[nn.Module, str, int]] = {}
    for name, wanted in chosen.items():
        group = plan[name]
        for number in group.resized:
            module = model.get_submodule(number.module)
            change = number.per_channel * (len(wanted) - group.width)
            key = (number.module, number.attribute)
            module, _, value = counts.get(key, (module, "", getattr(module, number.attribute)))
            counts[key] = (module, number.attribute, value + change)
    return list(counts.values())
