"""Parameters and multiply-accumulates of a choice of structures, as sums over tensors."""

from __future__ import annotations

import copy
import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from latewood.core import slice_channels
from latewood.core.coupling import ChannelGroup, ChannelPlan
from latewood.core.devices import on_device
from latewood.core.macs import macs_by_module
from latewood.slim.comparison import Examples
from latewood.slim.layer_times import CallArguments
from latewood.sparsity.structured.recorded_calls import copied_arguments, recorded_calls
from latewood.sparsity.structured.running_cost import Cost, CostPart
from latewood.sparsity.structured.structure_spec import StructureSpec, TensorSpec

__all__ = ["Products", "SumOverTensors", "multiply_accumulates", "parameters"]


@dataclass(frozen=True)
class _Entries:
    """One tensor: each entry that is there costs the same.

    Args:
        per_entry: cost of an entry.
        sizes: for each axis its positions without an owner, and (group, positions per channel).
        block: that it vanishes with, or None.
    """

    per_entry: float
    sizes: tuple[tuple[int, tuple[tuple[int, int], ...]], ...]
    block: int | None

    @property
    def groups(self) -> tuple[int, ...]:
        return tuple({group for _, owners in self.sizes for group, _ in owners})

    def at(self, widths: Sequence[int]) -> float:
        cost = self.per_entry
        for fixed, owners in self.sizes:
            cost *= fixed + sum(per_channel * widths[group] for group, per_channel in owners)
        return cost


@dataclass(frozen=True)
class Products:
    """Products without a weight, such as attention's, in one block or outside of all.

    Args:
        block: that they vanish with, or None.
        per_channel: what a channel adds, by group.
        constant: what is there without any.
    """

    block: int | None
    per_channel: Mapping[int, float]
    constant: float

    @property
    def groups(self) -> tuple[int, ...]:
        """The groups whose channels add some."""
        return tuple(self.per_channel)

    def at(self, widths: Sequence[int]) -> float:
        """How many there are."""
        return self.constant + sum(cost * widths[group] for group, cost in self.per_channel.items())


class SumOverTensors(Cost):
    """``sum_t c_t prod_axes (fixed + sum_g m_g width_g) + sum_b (const_b + sum_g e_bg width_g)``.

    Args:
        spec: the full model's structures.
        per_entry: (c) cost of an entry by tensor; tensors that are not named are free.
        products: what there is beside that of tensors, at most once for each block.
    """

    def __init__(
        self,
        spec: StructureSpec,
        per_entry: Mapping[str, float],
        products: Sequence[Products] = (),
    ) -> None:
        entries = [_entries(spec, name, cost) for name, cost in per_entry.items() if cost != 0.0]
        self._summands: list[_Entries | Products] = [*entries, *products]

    def parts(self, blocks: Sequence[bool]) -> list[CostPart]:
        """Those of tensors and products that are there."""
        return [
            CostPart(summand.groups, summand.at)
            for summand in self._summands
            if summand.block is None or blocks[summand.block]
        ]


def parameters(spec: StructureSpec) -> SumOverTensors:
    """The number of parameters, those of norms and biases included."""
    tensors = spec.tensors.values()
    return SumOverTensors(spec, {tensor.name: 1.0 for tensor in tensors if tensor.is_parameter})


def multiply_accumulates(
    model: nn.Module, spec: StructureSpec, example_inputs: Examples
) -> SumOverTensors:
    """Multiply-accumulates of a forward pass on the example (``core.macs``).

    An entry of a layer's weight is used once for each position of the layer's output. What is left
    (attention's products) is counted block by block, and how it changes with a group's width on a
    copy of the smallest module around the group, with a channel less.

    Args:
        model: the full model.
        spec: its structures.
        example_inputs: what the model is called with.
    """
    inputs = on_device(model, example_inputs)
    (call,) = recorded_calls(model, [""], inputs)[""]
    counts = macs_by_module(model, *call[0], **call[1])
    per_entry = _uses(spec, counts)
    entries = {name: _entries(spec, name, cost) for name, cost in per_entry.items()}
    full = [group.width for group in spec.groups]

    def products(module: str) -> float:
        inside = (entries[name].at(full) for name in entries if _is_inside(name, module))
        return counts[module] - sum(inside)

    everything = products("")
    if everything == 0.0:
        return SumOverTensors(spec, per_entry)
    of_blocks: dict[int | None, float] = {
        number: products(block.name) for number, block in enumerate(spec.blocks)
    }
    of_blocks[None] = everything - sum(of_blocks.values())
    slopes: dict[int | None, dict[int, float]] = {block: {} for block in of_blocks}
    around = {
        number: name
        for number, group in enumerate(spec.groups)
        for name in [_smallest_around(group, counts)]
        if products(name) != 0.0
    }
    calls = recorded_calls(model, set(around.values()), inputs)
    for number, name in around.items():
        narrow = _narrow_counts(model, name, spec.groups[number], calls[name])
        for block, cost in _slopes(spec, number, name, counts, narrow, entries).items():
            if cost != 0.0:
                slopes[block][number] = cost
    rest = []
    for block, total in of_blocks.items():
        slope = slopes[block]
        constant = total - sum(cost * full[number] for number, cost in slope.items())
        if slope or constant:
            rest.append(Products(block, slope, constant))
    return SumOverTensors(spec, per_entry, rest)


def _slopes(
    spec: StructureSpec,
    group: int,
    module: str,
    counts: Mapping[str, int],
    narrow: Mapping[str, int],
    entries: Mapping[str, _Entries],
) -> dict[int | None, float]:
    """The products that a channel of a group adds, by block.

    Args:
        spec: the structures.
        group: number of the group.
        module: name of a module that all of the group is in.
        counts: multiply-accumulates of the full model by module.
        narrow: those of the module with a channel less, by the same names.
        entries: of the layers' weights by tensor.
    """
    full = [group.width for group in spec.groups]
    less = [width - (number == group) for number, width in enumerate(full)]
    touched = {name: cost for name, cost in entries.items() if group in cost.groups}

    def slope(name: str) -> float:
        of_layers = (
            cost.at(full) - cost.at(less)
            for tensor, cost in touched.items()
            if _is_inside(tensor, name)
        )
        return counts[name] - narrow.get(name, 0) - sum(of_layers)

    for number, block in enumerate(spec.blocks):
        if module == block.name or _is_inside(module, block.name):
            return {number: slope(module)}
    inside: dict[int | None, float] = {
        number: slope(block.name)
        for number, block in enumerate(spec.blocks)
        if _is_inside(block.name, module)
    }
    return {**inside, None: slope(module) - sum(inside.values())}


def _narrow_counts(
    model: nn.Module, name: str, group: ChannelGroup, calls: Sequence[CallArguments]
) -> Counter[str]:
    """Multiply-accumulates in a module with a channel less, by the modules' names in the model."""
    prefix = f"{name}." if name else ""
    members = (
        replace(member, tensor=member.tensor.removeprefix(prefix)) for member in group.members
    )
    resized = (
        replace(count, module="" if count.module == name else count.module.removeprefix(prefix))
        for count in group.resized
    )
    inner = replace(group, members=tuple(members), resized=tuple(resized))
    twin = copy.deepcopy(model.get_submodule(name))
    slice_channels(twin, ChannelPlan((inner,)), {group.name: range(group.width - 1)})
    counts: Counter[str] = Counter()
    for call in calls:
        args, kwargs = copied_arguments(call)
        for inside, count in macs_by_module(twin, *args, **kwargs).items():
            counts[f"{prefix}{inside}" if inside else name] += count
    return counts


def _smallest_around(group: ChannelGroup, counts: Mapping[str, int]) -> str:
    """The innermost module that is called and holds all of a group."""
    holders = [member.tensor.rpartition(".")[0] for member in group.members]
    paths = [name.split(".") for name in [*holders, *(count.module for count in group.resized)]]
    parts = list(itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False)))
    names = [".".join(name for name, *_ in parts[:length]) for length in range(len(parts), 0, -1)]
    return next((name for name in names if name in counts), "")


def _is_inside(name: str, module: str) -> bool:
    """Whether a tensor or a module is inside of another module."""
    return not module or name.startswith(f"{module}.")


def _entries(spec: StructureSpec, name: str, cost: float) -> _Entries:
    tensor = spec.tensors[name]
    sizes: list[tuple[int, tuple[tuple[int, int], ...]]] = [(size, ()) for size in tensor.shape]
    for axis in tensor.axes:
        owned = sum(indices.numel() for _, indices in axis.owners)
        owners = tuple((group, indices.shape[1]) for group, indices in axis.owners)
        sizes[axis.axis] = (axis.size - owned, owners)
    return _Entries(cost, tuple(sizes), tensor.block)


def _uses(spec: StructureSpec, counts: Mapping[str, int]) -> dict[str, float]:
    """How often an entry of each layer's weights is used, by tensor; 0 where that is not clear."""
    matrices: dict[str, list[TensorSpec]] = {}
    for tensor in spec.tensors.values():
        if tensor.is_parameter and len(tensor.shape) > 1 and "bias" not in tensor.attribute:
            matrices.setdefault(tensor.name.rpartition(".")[0], []).append(tensor)
    uses: dict[str, float] = {}
    for layer, weights in matrices.items():
        module = weights[0].module
        recurrent = isinstance(module, nn.RNNBase | nn.RNNCellBase)
        size = sum(math.prod(weight.shape) for weight in weights)
        count, rest = divmod(counts.get(layer, 0), size)
        clear = not any(module.children()) and (recurrent or len(weights) == 1) and not rest
        uses.update({weight.name: float(count) if clear else 0.0 for weight in weights})
    return uses
