"""What of a full model can come and go: channel groups, blocks, and the tensors that follow."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from latewood.core import ChannelGroup, ChannelPlan, stored_tensor, trace_channels, transformations
from latewood.core.coupling import verify_small_plan
from latewood.core.coupling.trace import layer_tensors
from latewood.core.parameter_uses import parameter_uses
from latewood.core.selection import parametrization_list
from latewood.errors import RequestError, invalid, listed
from latewood.sparsity.structured.removable_blocks import RemovableBlock, removable_blocks

__all__ = ["ChannelCount", "OwnedAxis", "StructureSpec", "TensorSpec"]

_MOST_REASONS: Final = 3


@dataclass(frozen=True)
class OwnedAxis:
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
class TensorSpec:
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
    axes: tuple[OwnedAxis, ...]
    block: int | None
    is_parameter: bool
    deviation: float

    @property
    def stored(self) -> Tensor:
        """The tensor as it is now, without transformations."""
        if self.is_parameter:
            return stored_tensor(self.module, self.attribute)
        buffer: Tensor = getattr(self.module, self.attribute)
        return buffer

    def positions(self, present: Sequence[Tensor]) -> list[Tensor]:
        """For each axis, the positions of the full tensor that are there, ascending."""
        positions = [torch.arange(size) for size in self.shape]
        for axis in self.axes:
            positions[axis.axis] = axis.positions(present)
        return positions


@dataclass(frozen=True)
class ChannelCount:
    """An attribute of a module that counts channels, beside what torch's layers keep of shapes.

    Args:
        module: that has the attribute.
        attribute: its name.
        group: number of the group that is counted.
        per_channel: how much a channel adds.
    """

    module: nn.Module
    attribute: str
    group: int
    per_channel: int


class StructureSpec:
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

    plan: ChannelPlan
    """All coupled channels of the model, those that cannot go included; channels whose number must
    be a multiple of something are taken together."""
    groups: tuple[ChannelGroup, ...]
    """The groups whose channels come and go."""
    units: tuple[int, ...]
    """For each group, how many channels of the model are taken for one."""
    blocks: tuple[RemovableBlock, ...]
    """The residual blocks that come and go."""
    tensors: dict[str, TensorSpec]
    """All parameters and buffers of the layers, by name."""
    block_of: tuple[int | None, ...]
    """For each group the block that it lives in and vanishes with, if there is one."""
    counts: tuple[ChannelCount, ...]
    """Attributes that count channels of the groups."""

    def __init__(
        self, model: nn.Module, example_inputs: Any, *, exclude: Sequence[str], layers: bool
    ) -> None:
        owners = dict(layer_tensors(model))
        traced = trace_channels(model, example_inputs)
        self.plan = traced.in_units()
        blocks = removable_blocks(model, self.plan, example_inputs) if layers else ()
        groups = _scalable_groups(model, self.plan.free, owners)
        names = [*(group.name for group in groups), *(block.name for block in blocks)]
        spared = _matching(exclude, names)
        self.groups = tuple(group for group in groups if group.name not in spared)
        self.units = tuple(traced[group.name].multiple_of for group in self.groups)
        self.blocks = tuple(block for block in blocks if block.name not in spared)
        if not self.groups:
            raise invalid(
                "model",
                type(model).__name__,
                f"a model with channels that can be removed; {_held_by(self.plan)}",
            )
        self._refuse_transformed(owners)
        verify_small_plan(
            model, traced, example_inputs, groups=[group.name for group in self.groups]
        )
        parameters = {id(parameter) for parameter in model.parameters()}
        self.tensors = {}
        for name, (module, attribute) in _stored(owners):
            tensor = stored_tensor(module, attribute)
            self.tensors[name] = TensorSpec(
                name,
                module,
                attribute,
                tuple(tensor.shape),
                self._axes(name, tuple(tensor.shape)),
                self._block_with(name),
                id(tensor) in parameters,
                float(tensor.detach().double().std()) if tensor.ndim > 1 else 0.0,
            )
        self.block_of = tuple(self._block_around(group) for group in self.groups)
        self.counts = tuple(self._counts(model))

    def _refuse_transformed(self, owners: Mapping[str, tuple[nn.Module, str]]) -> None:
        """Transformations may stay on what keeps its shape only, as weight norm often does."""
        changing = {member.tensor for group in self.groups for member in group.members}
        for name in changing.union(*(block.last for block in self.blocks)):
            if transformations(*owners[name]):
                raise RequestError(
                    f"model: {name} carries a transformation, whose shape would not follow; build "
                    "StructuredSparsification before other methods, or finalize them first"
                )

    def _axes(self, name: str, shape: tuple[int, ...]) -> tuple[OwnedAxis, ...]:
        axes: dict[int, dict[int, Tensor]] = {}
        reads: set[int] = set()
        for number, group in enumerate(self.groups):
            for member in group.members:
                if member.tensor == name:
                    axes.setdefault(member.axis, {})[number] = member.indices
                    if member.role == "consumer":
                        reads.add(member.axis)
        return tuple(
            OwnedAxis(axis, shape[axis], tuple(owners.items()), axis in reads)
            for axis, owners in sorted(axes.items())
        )

    def _block_with(self, tensor: str) -> int | None:
        for number, block in enumerate(self.blocks):
            if tensor.startswith(f"{block.name}."):
                return number
        return None

    def _block_around(self, group: ChannelGroup) -> int | None:
        """The block that holds all of a group; None if any of it is elsewhere."""
        blocks = {self.tensors[member.tensor].block for member in group.members}
        return blocks.pop() if len(blocks) == 1 else None

    def _counts(self, model: nn.Module) -> Iterable[ChannelCount]:
        for number, group in enumerate(self.groups):
            for resized in group.resized:
                module = model.get_submodule(resized.module)
                count = getattr(module, resized.attribute)
                yield ChannelCount(module, resized.attribute, number, count // group.width)


def _scalable_groups(
    model: nn.Module, groups: Iterable[ChannelGroup], owners: Mapping[str, tuple[nn.Module, str]]
) -> list[ChannelGroup]:
    """The groups of several channels whose readers can be scaled: they only read, and untied."""
    uses = parameter_uses(model)
    tied = {name for name, owner in owners.items() if len(uses.get(id(getattr(*owner)), ())) > 1}
    scalable = []
    for group in groups:
        readers = {(member.tensor, member.axis) for member in group.having("consumer")}
        others = {(m.tensor, m.axis) for m in group.members if m.role != "consumer"}
        is_tied = any(name in tied for name, _ in readers)
        if group.width > 1 and readers and not readers & others and not is_tied:
            scalable.append(group)
    return scalable


def _stored(
    owners: Mapping[str, tuple[nn.Module, str]],
) -> Iterator[tuple[str, tuple[nn.Module, str]]]:
    """The tensors that training changes: of a weight that is split into several, each."""
    for name, (module, attribute) in owners.items():
        if parametrize.is_parametrized(module, attribute):
            pieces = parametrization_list(module, attribute)
            if not pieces.is_tensor:
                prefix = name.removesuffix(attribute)
                for piece in pieces._parameters:
                    yield f"{prefix}parametrizations.{attribute}.{piece}", (pieces, piece)
                continue
        yield name, (module, attribute)


def _held_by(plan: ChannelPlan) -> str:
    """Why no group can change, the reasons that hold most channels first."""
    held: Counter[str] = Counter()
    for group in plan:
        reasons = {f"{group.name}: {barrier.reason}" for barrier in group.barriers[:1]}
        held.update(dict.fromkeys(reasons, group.width))
    ordered = [reason for reason, _ in held.most_common()]
    return f"here all are held ({listed(ordered, most=_MOST_REASONS)})"


def _matching(exclude: Sequence[str], names: Sequence[str]) -> set[str]:
    """The names that any of the patterns matches; each must match one."""
    matched: set[str] = set()
    for pattern in exclude:
        matches = fnmatch.filter(names, pattern)
        if not matches:
            raise invalid("exclude", pattern, f"a pattern on one of {', '.join(names)}")
        matched.update(matches)
    return matched
