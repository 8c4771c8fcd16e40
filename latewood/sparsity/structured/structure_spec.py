"""What of a full model can come and go: channel groups, blocks, and the tensors that follow."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from latewood.core import ChannelGroup, ChannelPlan, stored_tensor, trace_channels, transformations
from latewood.core.coupling.trace import layer_tensors
from latewood.core.parameter_uses import parameter_uses
from latewood.errors import RequestError, invalid
from latewood.sparsity.structured.removable_blocks import Block, removable_blocks

__all__ = ["Axis", "Held", "Skeleton"]


@dataclass(frozen=True)
class Axis:
    """An axis whose size follows channels.

    Args:
        axis: of the tensor.
        size: of the full tensor.
        owners: number of a group, and int64 (width, multiplicity): the positions of its channels.
        reads: whether the tensor sums over the axis.
    """

    axis: int
    size: int
    owners: tuple[tuple[int, Tensor], ...]
    reads: bool

    def positions(self, present: Sequence[Tensor]) -> Tensor:
        """The positions of the full axis that are there when some channels are, ascending."""
        there = torch.ones(self.size, dtype=torch.bool)
        for group, indices in self.owners:
            there[indices[~present[group]].flatten()] = False
        return there.nonzero().flatten()

    def channels(self) -> Tensor:
        """For each position of the full axis, its channel in the row of all owners' channels."""
        channel = torch.full((self.size,), -1)
        start = 0
        for _, indices in self.owners:
            width, multiplicity = indices.shape
            numbers = torch.arange(start, start + width).unsqueeze(1).expand(width, multiplicity)
            channel[indices.flatten()] = numbers.flatten()
            start += width
        return channel


@dataclass(frozen=True)
class Held:
    """One tensor of the full model.

    Args:
        name: of the parameter or buffer.
        module: that holds it.
        attribute: its name there.
        shape: of the full tensor.
        axes: those that follow channels.
        block: number of the removable block that it is in; None if it is in none.
        is_parameter: whether it is no buffer.
        deviation: of the full tensor's initial values; 0 for vectors.
    """

    name: str
    module: nn.Module
    attribute: str
    shape: tuple[int, ...]
    axes: tuple[Axis, ...]
    block: int | None
    is_parameter: bool
    deviation: float

    @property
    def stored(self) -> Tensor:
        """The tensor as it is now, without transformations."""
        found = stored_tensor(self.module, self.attribute) if self.is_parameter else None
        return getattr(self.module, self.attribute) if found is None else found

    def positions(self, present: Sequence[Tensor]) -> list[Tensor]:
        """For each axis, the positions of the full tensor that are there, ascending."""
        found = [torch.arange(size) for size in self.shape]
        for axis in self.axes:
            found[axis.axis] = axis.positions(present)
        return found


class Skeleton:
    """The structures of a full model.

    Args:
        model: any module without transformations.
        example_inputs: what it is called with.
        exclude: patterns on names of groups and blocks that are to stay whole.
        layers: whether blocks may go.

    Raises:
        RequestError: nothing can go, a pattern matches nothing, or the model carries
            transformations.
    """

    def __init__(
        self, model: nn.Module, example_inputs: Any, *, exclude: Sequence[str], layers: bool
    ) -> None:
        found = dict(layer_tensors(model))
        for name, place in found.items():
            if transformations(*place):
                raise RequestError(
                    f"model: {name} carries a transformation, whose shape would not follow; build "
                    "StructuredSparsification before other methods, or finalize them first"
                )
        self.plan: ChannelPlan = trace_channels(model, example_inputs)
        blocks = removable_blocks(model, self.plan, example_inputs) if layers else ()
        readers = _Readers(model, found)
        groups = [group for group in self.plan.free if group.width > 1 and readers.allow(group)]
        names = [*(group.name for group in groups), *(block.name for block in blocks)]
        for pattern in exclude:
            if not fnmatch.filter(names, pattern):
                raise invalid("exclude", pattern, f"a pattern on one of {', '.join(names)}")
        spared = {name for pattern in exclude for name in fnmatch.filter(names, pattern)}
        self.groups: tuple[ChannelGroup, ...] = tuple(g for g in groups if g.name not in spared)
        self.blocks: tuple[Block, ...] = tuple(b for b in blocks if b.name not in spared)
        if not self.groups:
            raise invalid(
                "model", type(model).__name__, "a model with channels that can be removed"
            )
        parameters = {id(parameter) for parameter in model.parameters()}
        self.tensors: dict[str, Held] = {}
        for name, (module, attribute) in found.items():
            tensor = getattr(module, attribute)
            self.tensors[name] = Held(
                name,
                module,
                attribute,
                tuple(tensor.shape),
                self._axes(name, tuple(tensor.shape)),
                self._block_of(name),
                id(tensor) in parameters,
                float(tensor.detach().double().std()) if tensor.ndim > 1 else 0.0,
            )
        self.home: tuple[int | None, ...] = tuple(self._home(group) for group in self.groups)

    def _axes(self, name: str, shape: tuple[int, ...]) -> tuple[Axis, ...]:
        axes: dict[int, dict[int, Tensor]] = {}
        reads: set[int] = set()
        for number, group in enumerate(self.groups):
            for member in group.members:
                if member.tensor == name:
                    axes.setdefault(member.axis, {})[number] = member.indices
                    if member.role == "consumer":
                        reads.add(member.axis)
        return tuple(
            Axis(axis, shape[axis], tuple(owners.items()), axis in reads)
            for axis, owners in sorted(axes.items())
        )

    def _block_of(self, name: str) -> int | None:
        for number, block in enumerate(self.blocks):
            if name.startswith(f"{block.name}."):
                return number
        return None

    def _home(self, group: ChannelGroup) -> int | None:
        """The block that a group lives in and vanishes with; None if any of it is elsewhere."""
        blocks = {self.tensors[member.tensor].block for member in group.members}
        return blocks.pop() if len(blocks) == 1 else None


class _Readers:
    """Which groups' readers can be scaled: they do nothing else, and are not tied."""

    def __init__(self, model: nn.Module, found: Mapping[str, tuple[nn.Module, str]]) -> None:
        used = parameter_uses(model)
        self._tied = {
            name for name, place in found.items() if len(used.get(id(getattr(*place)), ())) > 1
        }

    def allow(self, group: ChannelGroup) -> bool:
        """Whether all readers of a group's channels can be scaled, and there are any."""
        readers = {(each.tensor, each.axis) for each in group.having("consumer")}
        others = {(each.tensor, each.axis) for each in group.members if each.role != "consumer"}
        tied = any(name in self._tied for name, _ in readers)
        return bool(readers) and not readers & others and not tied
