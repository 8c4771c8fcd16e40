"""Measures the layers of a model at a few widths, for a table of latencies."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor, nn

from latewood.core import slice_channels
from latewood.core.coupling.attributes import Sizes
from latewood.core.coupling.resize import replace_data, selected
from latewood.core.devices import device_of, on_device
from latewood.core.modes import undisturbed
from latewood.core.timing import least_times
from latewood.slim.comparison import Examples
from latewood.slim.layer_times import CallArguments, calls_of
from latewood.sparsity.structured.latency_table import LayerLatency, MeasuredLatency, Surface
from latewood.sparsity.structured.structure_spec import StructureSpec, TensorSpec

__all__ = ["measured_latency"]

_SHARES: Final = (0.0, 0.25, 0.5, 1.0)
"""Widths at which a layer is measured, as shares; 0 is one channel."""
_PATIENCE: Final[dict[str, Any]] = {"steady": 3, "seconds": 0.05}
"""Of the timer: there are hundreds of small measurements."""
_FEATURE_COUNT: Final[Mapping[type[nn.Module], str]] = {
    nn.Linear: "in_features",
    nn.modules.conv._ConvNd: "in_channels",
    nn.modules.batchnorm._NormBase: "num_features",
}
"""Layers that also run on a part of their input, and what says how large a part."""


def measured_latency(
    model: nn.Module, spec: StructureSpec, example_inputs: Examples
) -> MeasuredLatency:
    """Measures every layer at a few widths of what it makes and of what it reads.

    On the CPU: processor time of one thread; elsewhere elapsed time. Evaluation mode, the least
    times of some turns, on the inputs that the layer meets in a copy of the model of those widths.

    Args:
        model: the full model, without factors.
        spec: its structures.
        example_inputs: what the model is called with; it decides the batch size.
    """
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        with undisturbed(model):
            latency = _measured(model, spec, on_device(model, example_inputs))
    finally:
        torch.set_num_threads(threads)
    # All processes must choose by one table.
    shared: list[Any] = [latency.table()]
    if dist.is_available() and dist.is_initialized():
        dist.broadcast_object_list(shared, src=0)
    return latency.having(shared[0])


def _measured(model: nn.Module, spec: StructureSpec, inputs: Examples) -> MeasuredLatency:
    names = {id(module): name for name, module in model.named_modules()}
    tensors: dict[str, TensorSpec] = {}
    for tensor in spec.tensors.values():
        if tensor.is_parameter:
            # A layer's first parameter says what it makes and what it reads.
            tensors.setdefault(names[id(tensor.module)], tensor)
    alone = {
        name: tensor.module
        for name, tensor in tensors.items()
        if _feature_count(tensor.module) is not None
    }
    calls = calls_of(model, alone, inputs)
    layers = [
        _layer_latency(model, spec, name, tensor, calls.get(name, ()), inputs)
        for name, tensor in tensors.items()
    ]
    full = [group.width for group in spec.groups]
    nothing = Surface((_SHARES,), torch.zeros(len(_SHARES)))
    of_layers = MeasuredLatency(layers, nothing, full, spec.block_of)
    between = []
    for share in _SHARES:
        widths = [_width(spec, group, share) for group in range(len(full))]
        narrow = _narrowed(model, spec, dict(enumerate(widths)))
        whole = _milliseconds(narrow, calls_of(narrow, {"": narrow}, inputs)[""])
        between.append(max(whole - of_layers.at(widths, [True] * len(spec.blocks)), 0.0))
    values = torch.tensor(between, dtype=torch.float64)
    return MeasuredLatency(layers, Surface.rising((_SHARES,), values), full, spec.block_of)


def _layer_latency(
    model: nn.Module,
    spec: StructureSpec,
    name: str,
    tensor: TensorSpec,
    calls: Sequence[CallArguments],
    inputs: Examples,
) -> LayerLatency:
    """Times one layer, over the widths of the groups on each of its axes.

    Args:
        model: the full model.
        spec: its structures.
        name: of the layer.
        tensor: its first parameter.
        calls: what it is given in the full model, if it runs on a part of that input.
        inputs: of the model.
    """
    variables = _variables(tensor)
    marks = [
        tuple(float(sum(_width(spec, group, share) for group in groups)) for share in _SHARES)
        for groups in variables
    ]
    values = torch.zeros([len(_SHARES)] * len(variables), dtype=torch.float64)
    counted_by = _feature_count(tensor.module)
    for place in itertools.product(range(len(_SHARES)), repeat=len(variables)):
        widths = {
            group: _width(spec, group, _SHARES[position])
            for groups, position in zip(variables, place, strict=True)
            for group in groups
        }
        if counted_by is not None:
            layer = _cut(spec, tensor.module, widths)
            count = getattr(layer, counted_by)
            met: list[CallArguments] = [
                ((_part(layer, count, given[0]),), {}) for given, _ in calls
            ]
        else:
            narrow = _narrowed(model, spec, widths)
            layer = narrow.get_submodule(name)
            met = calls_of(narrow, {name: layer}, inputs).get(name, [])
        values[place] = _milliseconds(layer, met)
    return LayerLatency(tuple(variables), Surface.rising(tuple(marks), values), tensor.block)


def _variables(tensor: TensorSpec) -> list[tuple[int, ...]]:
    """The groups on each axis; all in one where those of two axes cannot be varied apart."""
    variables = list(
        dict.fromkeys(tuple(group for group, _ in axis.owners) for axis in tensor.axes)
    )
    groups = sorted({group for variable in variables for group in variable})
    return variables if len(groups) == sum(map(len, variables)) else [tuple(groups)]


def _cut(spec: StructureSpec, layer: nn.Module, widths: Mapping[int, int]) -> nn.Module:
    """A copy of one layer with the first channels of some groups, and all of the others."""
    present = [
        torch.arange(group.width) < widths.get(number, group.width)
        for number, group in enumerate(spec.groups)
    ]
    twin = copy.deepcopy(layer)
    size = Sizes.of(twin)
    for tensor in spec.tensors.values():
        if tensor.module is layer:
            stored = getattr(twin, tensor.attribute)
            replace_data(stored, selected(stored, dict(enumerate(tensor.positions(present)))))
    size.refresh()
    return twin


def _part(layer: nn.Module, count: int, inputs: Tensor) -> Tensor:
    """The first features of a layer's input."""
    axis = -1 if isinstance(layer, nn.Linear) else 1
    return inputs.narrow(axis, 0, count).contiguous()


def _feature_count(layer: nn.Module) -> str | None:
    """The attribute that says how many features a layer reads, if it runs on a part of them."""
    names = (name for kind, name in _FEATURE_COUNT.items() if isinstance(layer, kind))
    return next(names, None)


def _narrowed(model: nn.Module, spec: StructureSpec, widths: Mapping[int, int]) -> nn.Module:
    """A copy of the model with fewer channels."""
    twin = copy.deepcopy(model).eval()
    keep = {spec.groups[group].name: range(width) for group, width in widths.items()}
    slice_channels(twin, spec.plan, keep)
    return twin


def _width(spec: StructureSpec, group: int, share: float) -> int:
    return max(1, round(share * spec.groups[group].width))


def _milliseconds(module: nn.Module, calls: Sequence[CallArguments]) -> float:
    """The time that a module takes for some calls, one after the other."""
    forms = {
        str(number): partial(module, *positional, **named)
        for number, (positional, named) in enumerate(calls)
    }
    return sum(least_times(forms, device_of(module), **_PATIENCE).values()) / 1e3
