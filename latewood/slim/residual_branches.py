"""Branches that write to only some channels of a residual stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from latewood.core.coupling.trace import layer_tensors, run_model
from latewood.core.modes import evaluated, unfused
from latewood.slim.comparison import Examples
from latewood.slim.dependence import Dependence
from latewood.slim.dependence_rules import RULES

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
    with evaluated(model), unfused(), torch.no_grad(), parametrize.cached():
        tensors = {name: getattr(*owner) for name, owner in layer_tensors(model)}
        state = _Sums({id(tensor): name for name, tensor in tensors.items()})
        with _outputs_watched(model, state), state:
            run_model(model, example_inputs)
    return {name: end for name, end in state.ends.items() if state.calls[name] == 1}


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


class _Sums(Dependence):
    """Beside what depends on the inputs, which layer made each operand of an addition."""

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__(names, RULES)
        self.ends: dict[str, BranchEnd] = {}
        self.calls: dict[str, int] = {}
        self._made: dict[int, tuple[Tensor, int, str, int]] = {}

    def made_by(self, output: Tensor, layer: str, dim: int) -> None:
        """Notes a layer's output."""
        self.calls[layer] = self.calls.get(layer, 0) + 1
        self._made[id(output)] = (output, output._version, layer, dim)

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = getattr(function, "__name__", "").strip("_")
        if name in ("add", "iadd", "radd") and len(args) == 2:
            for operand in args:
                self._note(operand)
        return super().__torch_function__(function, types, args, kwargs)

    def _note(self, operand: Any) -> None:
        if id(operand) not in self._made:
            return
        output, version, layer, dim = self._made[id(operand)]
        if output._version != version:
            return
        alive = self.matters(output).movedim(dim, 0).flatten(1).any(1)
        if len(alive) > 1 and not bool(alive.all()):
            self.ends[layer] = (dim, len(alive))


@contextmanager
def _outputs_watched(model: nn.Module, state: _Sums) -> Iterator[None]:
    handles = []
    for name, module in model.named_modules():
        last = isinstance(module, _LAST)
        if not name or not (last or isinstance(module, _BEHIND_BATCH)):
            continue

        def leave(_: nn.Module, __: Any, output: Any, name: str = name, last: bool = last) -> None:
            if isinstance(output, Tensor):
                state.made_by(output, name, -1 if last else 1)

        handles.append(module.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
