"""Residual blocks that a network can do without: those whose removal leaves the identity."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from latewood.core.coupling import ChannelPlan
from latewood.core.coupling.trace import layer_tensors, run_model
from latewood.core.modes import evaluated

__all__ = ["RemovableBlock", "removable_blocks"]


@dataclass(frozen=True)
class RemovableBlock:
    """A block that becomes the identity when the last tensors of its branch are zero.

    Args:
        name: qualified name of the module.
        module: the block.
        last: names of those tensors: a norm's weight and bias, or those of the last layer.
    """

    name: str
    module: nn.Module
    last: tuple[str, ...]


def removable_blocks(
    model: nn.Module, plan: ChannelPlan, example_inputs: Any
) -> tuple[RemovableBlock, ...]:
    """Finds the innermost modules with a branch beside an identity, by trying.

    On a copy with other norms (whose initial values hide what they add), the tensors that write
    last onto the stream are set to zero; the module must then return its input, bit for bit.

    Args:
        model: any module without transformations.
        plan: its channel plan.
        example_inputs: what the model is called with.
    """
    twin = copy.deepcopy(model)
    _unsettle_norms(twin)
    tensors = {name: getattr(*owner) for name, owner in layer_tensors(twin)}
    blocks: list[RemovableBlock] = []
    with torch.no_grad(), evaluated(twin):
        # Innermost first: a stage of removable blocks is not one layer.
        by_depth = sorted(twin.named_modules(), key=lambda item: -item[0].count("."))
        for name, module in by_depth:
            inside = {tensor for tensor in tensors if tensor.startswith(f"{name}.")}
            if not name or not list(module.children()) or not inside:
                continue
            if any(block.name.startswith(f"{name}.") for block in blocks):
                continue
            for last in _endings(plan, inside):
                written = [tensors[tensor] for tensor in last]
                if _is_identity_without(twin, module, written, example_inputs):
                    blocks.append(RemovableBlock(name, model.get_submodule(name), last))
                    break
    order = {name: number for number, (name, _) in enumerate(model.named_modules())}
    return tuple(sorted(blocks, key=lambda block: order[block.name]))


def _endings(plan: ChannelPlan, inside: set[str]) -> Iterator[tuple[str, ...]]:
    """What may write last onto a stream that passes through the block: its norms, or its layers."""
    for group in plan:
        names = {member.tensor for member in group.members}
        if not names - inside or not names & inside:
            continue
        makers = {member.tensor for member in group.having("producer")} & inside
        if not makers:
            continue
        vectors = {member.tensor for member in group.having("per_channel")} & inside
        layers = {_layer(tensor) for tensor in makers}
        norms = {
            tensor
            for tensor in vectors
            if tensor.endswith((".weight", ".bias")) and _layer(tensor) not in layers
        }
        biases = {tensor for tensor in vectors if _layer(tensor) in layers}
        if norms:
            yield tuple(sorted(norms))
        yield tuple(sorted(makers | biases))


def _layer(tensor: str) -> str:
    return tensor.rpartition(".")[0]


def _is_identity_without(
    model: nn.Module, module: nn.Module, last: list[Tensor], example_inputs: Any
) -> bool:
    calls: list[tuple[Any, Any]] = []
    before = [tensor.clone() for tensor in last]
    handle = module.register_forward_hook(lambda _, inputs, output: calls.append((inputs, output)))
    try:
        for tensor in last:
            tensor.zero_()
        run_model(model, example_inputs)
    finally:
        handle.remove()
        for tensor, value in zip(last, before, strict=True):
            tensor.copy_(value)
    if len(calls) != 1:
        return False
    ((inputs, output),) = calls
    return (
        len(inputs) == 1
        and isinstance(inputs[0], Tensor)
        and isinstance(output, Tensor)
        and inputs[0].shape == output.shape
        and torch.equal(inputs[0], output)
    )


def _unsettle_norms(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if not isinstance(module, nn.modules.batchnorm._NormBase | nn.LayerNorm | nn.GroupNorm):
                continue
            for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
                if tensor.is_floating_point():
                    drawn = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
                    tensor.copy_(drawn + 0.5 if name.endswith(("weight", "var")) else drawn - 0.5)
