"""What a choice of structures costs: parameters and multiply-accumulates as sums over tensors."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from latewood.core import macs, slice_channels
from latewood.core.modes import evaluated
from latewood.sparsity.structured.structure_spec import Skeleton

__all__ = ["Cost", "SumOverTensors", "multiply_accumulates", "parameters"]


class Cost(Protocol):
    """What a network of some widths and blocks costs."""

    def at(self, widths: Sequence[int], blocks: Sequence[bool]) -> float:
        """The cost.

        Args:
            widths: channels of each group.
            blocks: which removable blocks are there.
        """
        ...


@dataclass(frozen=True)
class _Term:
    """One tensor: each entry that is there costs the same.

    Args:
        per_entry: cost of an entry.
        sizes: for each axis its positions without an owner, and (group, positions per channel).
        block: that it vanishes with, or None.
    """

    per_entry: float
    sizes: tuple[tuple[int, tuple[tuple[int, int], ...]], ...]
    block: int | None


class SumOverTensors:
    """``sum_t c_t prod_axes (fixed + sum_g m_g width_g) + sum_g e_g width_g + constant``.

    Args:
        skeleton: the full model's structures.
        per_entry: (c) cost of an entry by tensor; tensors that are not named are free.
        per_channel: (e) cost of a channel by group, beside that of tensors.
        constant: cost of what cannot go.
    """

    def __init__(
        self,
        skeleton: Skeleton,
        per_entry: dict[str, float],
        per_channel: Sequence[float] = (),
        constant: float = 0.0,
    ) -> None:
        self._terms = [
            _term(skeleton, name, cost) for name, cost in per_entry.items() if cost != 0.0
        ]
        self._per_channel = list(per_channel)
        self._homes = skeleton.home
        self._constant = constant

    def at(self, widths: Sequence[int], blocks: Sequence[bool]) -> float:
        """The cost of a network with these widths and blocks."""
        total = self._constant
        for term in self._terms:
            if term.block is not None and not blocks[term.block]:
                continue
            cost = term.per_entry
            for fixed, owners in term.sizes:
                cost *= fixed + sum(each * widths[group] for group, each in owners)
            total += cost
        for group, cost in enumerate(self._per_channel):
            home = self._homes[group]
            if home is None or blocks[home]:
                total += cost * widths[group]
        return total


def parameters(skeleton: Skeleton) -> SumOverTensors:
    """The number of parameters, those of norms and biases included."""
    held = skeleton.tensors.values()
    return SumOverTensors(skeleton, {each.name: 1.0 for each in held if each.is_parameter})


def multiply_accumulates(
    model: nn.Module, skeleton: Skeleton, example_inputs: Sequence[Tensor]
) -> SumOverTensors:
    """Multiply-accumulates of a forward pass on the example (``core.macs``).

    An entry of a layer's weight is used once for each position of the layer's output. What is left
    (attention's products) is found by removing one channel of each group from a copy.

    Args:
        model: the full model.
        skeleton: its structures.
        example_inputs: the arguments of the forward pass.
    """
    uses = _uses(model, example_inputs)
    per_entry = {each.name: uses.get(id(each.module), 0.0) for each in _matrices(skeleton)}

    def counted(twin: nn.Module, plain: SumOverTensors, widths: Sequence[int]) -> float:
        return macs(twin, example_inputs) - plain.at(widths, everything)

    everything = [True] * len(skeleton.blocks)
    plain = SumOverTensors(skeleton, per_entry)
    full = [group.width for group in skeleton.groups]
    rest = counted(model, plain, full)
    if rest == 0.0:
        return plain
    per_channel = []
    for number, group in enumerate(skeleton.groups):
        twin = copy.deepcopy(model)
        slice_channels(twin, skeleton.plan, {group.name: range(group.width - 1)})
        widths = [*full[:number], group.width - 1, *full[number + 1 :]]
        per_channel.append(rest - counted(twin, plain, widths))
    constant = rest - sum(cost * width for cost, width in zip(per_channel, full, strict=True))
    return SumOverTensors(skeleton, per_entry, per_channel, constant)


def _term(skeleton: Skeleton, name: str, cost: float) -> _Term:
    held = skeleton.tensors[name]
    sizes: list[tuple[int, tuple[tuple[int, int], ...]]] = [(size, ()) for size in held.shape]
    for axis in held.axes:
        owned = sum(indices.numel() for _, indices in axis.owners)
        owners = tuple((group, indices.shape[1]) for group, indices in axis.owners)
        sizes[axis.axis] = (axis.size - owned, owners)
    return _Term(cost, tuple(sizes), held.block)


def _matrices(skeleton: Skeleton) -> list[Any]:
    return [
        each
        for each in skeleton.tensors.values()
        if each.is_parameter and len(each.shape) > 1 and "bias" not in each.attribute
    ]


def _uses(model: nn.Module, example_inputs: Sequence[Tensor]) -> dict[int, float]:
    """How often an entry of each layer's weights is used, by the layer's identity."""
    uses: dict[int, float] = {}

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        match module:
            case nn.Linear():
                often = output.numel() / module.out_features
            case nn.modules.conv._ConvTransposeNd():
                often = inputs[0].numel() / module.in_channels
            case nn.modules.conv._ConvNd():
                often = output.numel() / module.out_channels
            case nn.RNNBase():
                first = inputs[0][0] if isinstance(inputs[0], tuple) else inputs[0]
                often = first.numel() / first.shape[-1]
            case nn.RNNCellBase():
                often = inputs[0].numel() / module.input_size
            case _:
                return
        uses[id(module)] = uses.get(id(module), 0.0) + often

    handles = [module.register_forward_hook(note) for module in model.modules()]
    try:
        with torch.no_grad(), evaluated(model):
            model(*example_inputs)
    finally:
        for handle in handles:
            handle.remove()
    return uses
