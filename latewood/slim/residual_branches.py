"""Branches that write to only some channels of a residual stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from latewood.core.coupling.dependence import Dependence
from latewood.core.coupling.operation_table import dependence_rule
from latewood.core.coupling.trace import prepared, run_model
from latewood.core.coupling.traced_call import Operation
from latewood.core.coupling.watched_run import Watcher, watched
from latewood.core.module_calls import ModuleCall
from latewood.slim.comparison import Examples

__all__ = ["BranchEnd", "Scatter", "branch_ends", "scatter_branches"]

BranchEnd = tuple[int, int]
"""Where the channels of a branch's output are, and how many the stream has."""

_BEHIND_BATCH: Final = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)
_LAST: Final = (nn.Linear, nn.LayerNorm, nn.RMSNorm)


class Scatter(nn.Module):
    """Puts the channels of a branch at their places among zeros, ready to be added to a stream.

    y = 0 of the stream's width, y[..., kept[i], ...] += x[..., i, ...]

    Args:
        width: channels of the stream.
        dim: where the channels are.
        kept: int64 (channels,), the stream's channel of each of the branch's; None is all of them.
    """

    kept: Tensor

    def __init__(self, width: int, dim: int, kept: Tensor | None = None) -> None:
        super().__init__()
        self.width = width
        self.dim = dim
        self.register_buffer("kept", torch.arange(width) if kept is None else kept)

    def forward(self, inputs: Tensor) -> Tensor:
        """Maps (..., channels, ...) to (..., width, ...)."""
        sizes = list(inputs.shape)
        sizes[self.dim] = self.width
        empty = torch.zeros(sizes, dtype=inputs.dtype, device=inputs.device)
        return empty.index_add(self.dim, self.kept, inputs)

    def extra_repr(self) -> str:
        """The sizes in words."""
        return f"{len(self.kept)} of {self.width} channels, dim={self.dim}"


def branch_ends(model: nn.Module, example_inputs: Examples) -> dict[str, BranchEnd]:
    """Finds the layers whose output is added to another and has channels that are always zero.

    Args:
        model: any module, with its masks folded in.
        example_inputs: what it is called with.

    Returns:
        By the layer's name, the axis of its channels and their number. Layers that run several
        times in the example are left out.
    """
    with prepared(model) as tensors:
        dependence = Dependence(tensors, dependence_rule)
        sums = _Sums(dependence)
        with watched(model, dependence, sums):
            run_model(model, example_inputs)
    return {name: end for name, end in sums.ends.items() if sums.calls[name] == 1}


def scatter_branches(model: nn.Module, ends: Mapping[str, BranchEnd]) -> None:
    """Puts a ``Scatter`` that keeps every channel behind each of some layers.

    Args:
        model: changed in place.
        ends: what ``branch_ends`` returns, or some of it.
    """
    for name, (dim, width) in ends.items():
        layer = model.get_submodule(name)
        device = next((weight.device for weight in layer.parameters()), None)
        scatter = Scatter(width, dim).to(device)
        model.set_submodule(name, nn.Sequential(layer, scatter).train(layer.training))


class _Sums(Watcher):
    """Which layer made each operand of an addition, and whether it has channels that are zero.

    Args:
        dependence: sees the same run.
    """

    def __init__(self, dependence: Dependence) -> None:
        self.ends: dict[str, BranchEnd] = {}
        self.calls: dict[str, int] = {}
        self._dependence = dependence
        self._made: dict[int, tuple[Tensor, int, str, int]] = {}

    def left(self, call: ModuleCall, output: Any) -> None:
        """Notes a layer's output."""
        last = isinstance(call.module, _LAST)
        if not call.name or not isinstance(output, Tensor):
            return
        if last or isinstance(call.module, _BEHIND_BATCH):
            self.calls[call.name] = self.calls.get(call.name, 0) + 1
            self._made[id(output)] = (output, output._version, call.name, -1 if last else 1)

    def before(self, operation: Operation) -> None:
        """Looks at the operands of an addition, while they are as they were made."""
        if operation.name in ("add", "iadd", "radd") and len(operation.positional) == 2:
            for operand in operation.positional:
                self._note(operand)

    def _note(self, operand: Any) -> None:
        if id(operand) not in self._made:
            return
        output, version, layer, dim = self._made[id(operand)]
        if output._version != version:
            return
        alive = self._dependence.matters(output).movedim(dim, 0).flatten(1).any(1)
        if len(alive) > 1 and not bool(alive.all()):
            self.ends[layer] = (dim, len(alive))
