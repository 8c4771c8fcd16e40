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
from latewood.sparsity.structured.structure_spec import StructureSpec, TensorSpec

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
        spec: the full model's structures.
        per_entry: (c) cost of an entry by tensor; tensors that are not named are free.
        per_channel: (e) cost of a channel by group, beside that of tensors.
        constant: cost of what cannot go.
    """

    def __init__(
        self,
        spec: StructureSpec,
        per_entry: dict[str, float],
        per_channel: Sequence[float] = (),
        constant: float = 0.0,
    ) -> None:
        self._terms = [_term(spec, name, cost) for name, cost in per_entry.items() if cost != 0.0]
        self._per_channel = list(per_channel)
        self._block_of = spec.block_of
        self._constant = constant

    def at(self, widths: Sequence[int], blocks: Sequence[bool]) -> float:
        """The cost of a network with these widths and blocks."""
        total = self._constant
        for term in self._terms:
            if term.block is not None and not blocks[term.block]:
                continue
            cost = term.per_entry
            for fixed, owners in term.sizes:
                cost *= fixed + sum(per_channel * widths[group] for group, per_channel in owners)
            total += cost
        for group, cost in enumerate(self._per_channel):
            block = self._block_of[group]
            if block is None or blocks[block]:
                total += cost * widths[group]
        return total


def parameters(spec: StructureSpec) -> SumOverTensors:
    """The number of parameters, those of norms and biases included."""
    tensors = spec.tensors.values()
    return SumOverTensors(spec, {tensor.name: 1.0 for tensor in tensors if tensor.is_parameter})


def multiply_accumulates(
    model: nn.Module, spec: StructureSpec, example_inputs: Sequence[Tensor]
) -> SumOverTensors:
    """Multiply-accumulates of a forward pass on the example (``core.macs``).

    An entry of a layer's weight is used once for each position of the layer's output. What is left
    (attention's products) is found by removing one channel of each group from a copy.

    Args:
        model: the full model.
        spec: its structures.
        example_inputs: the arguments of the forward pass.
    """
    uses = _uses(model, example_inputs)
    per_entry = {matrix.name: uses.get(id(matrix.module), 0.0) for matrix in _matrices(spec)}

    all_blocks = [True] * len(spec.blocks)
    of_layers = SumOverTensors(spec, per_entry)

    def not_of_layers(network: nn.Module, widths: Sequence[int]) -> float:
        return macs(network, example_inputs) - of_layers.at(widths, all_blocks)

    full = [group.width for group in spec.groups]
    rest = not_of_layers(model, full)
    if rest == 0.0:
        return of_layers
    per_channel = []
    for number, group in enumerate(spec.groups):
        twin = copy.deepcopy(model)
        slice_channels(twin, spec.plan, {group.name: range(group.width - 1)})
        widths = [*full[:number], group.width - 1, *full[number + 1 :]]
        per_channel.append(rest - not_of_layers(twin, widths))
    constant = rest - sum(cost * width for cost, width in zip(per_channel, full, strict=True))
    return SumOverTensors(spec, per_entry, per_channel, constant)


def _term(spec: StructureSpec, name: str, cost: float) -> _Term:
    tensor = spec.tensors[name]
    sizes: list[tuple[int, tuple[tuple[int, int], ...]]] = [(size, ()) for size in tensor.shape]
    for axis in tensor.axes:
        owned = sum(indices.numel() for _, indices in axis.owners)
        owners = tuple((group, indices.shape[1]) for group, indices in axis.owners)
        sizes[axis.axis] = (axis.size - owned, owners)
    return _Term(cost, tuple(sizes), tensor.block)


def _matrices(spec: StructureSpec) -> list[TensorSpec]:
    return [
        tensor
        for tensor in spec.tensors.values()
        if tensor.is_parameter and len(tensor.shape) > 1 and "bias" not in tensor.attribute
    ]


def _uses(model: nn.Module, example_inputs: Sequence[Tensor]) -> dict[int, float]:
    """How often an entry of each layer's weights is used, by the layer's identity."""
    uses: dict[int, float] = {}

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        match module:
            case nn.Linear():
                count = output.numel() / module.out_features
            case nn.modules.conv._ConvTransposeNd():
                count = inputs[0].numel() / module.in_channels
            case nn.modules.conv._ConvNd():
                count = output.numel() / module.out_channels
            case nn.RNNBase():
                first = inputs[0][0] if isinstance(inputs[0], tuple) else inputs[0]
                count = first.numel() / first.shape[-1]
            case nn.RNNCellBase():
                count = inputs[0].numel() / module.input_size
            case _:
                return
        uses[id(module)] = uses.get(id(module), 0.0) + count

    handles = [module.register_forward_hook(note) for module in model.modules()]
    try:
        with torch.no_grad(), evaluated(model):
            model(*example_inputs)
    finally:
        for handle in handles:
            handle.remove()
    return uses
