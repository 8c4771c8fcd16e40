"""What a network takes: a table of measured layers, interpolated between a few widths."""

from __future__ import annotations

import bisect
import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor, nn

from latewood.core import slice_channels
from latewood.core.coupling.attributes import Sizes
from latewood.core.coupling.resize import replace_data
from latewood.core.devices import device_of, on_device
from latewood.core.modes import undisturbed
from latewood.sparsity.structured.structure_spec import Held, Skeleton

__all__ = ["MeasuredLatency", "Surface", "measured_latency"]

_SHARES: Final = (0.0, 0.25, 0.5, 1.0)
"""Widths at which a layer is measured, as shares; 0 is one channel."""
_REPEATS: Final = 5
_PASSES: Final = 3
_ALONE: Final = (nn.Linear, nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase)
"""Layers that run alone on a part of their input; others are timed inside the model."""

Groups = tuple[int, ...]


@dataclass(frozen=True)
class Surface:
    """Milliseconds over one or two widths, linear in between, rising with each.

    Args:
        marks: for each variable the widths that were measured, ascending.
        values: measured there, shape (len(marks[0]), len(marks[1])), (len(marks[0]),) or ().
    """

    marks: tuple[tuple[float, ...], ...]
    values: Tensor

    @classmethod
    def rising(cls, marks: tuple[tuple[float, ...], ...], values: Tensor) -> Surface:
        """A surface that no noise of the measurement lets fall."""
        for axis in range(values.ndim):
            values = values.cummax(axis).values
        return cls(marks, values)

    @cached_property
    def _rows(self) -> Any:
        """The values as plain numbers, nested: the selection asks thousands of times."""
        return self.values.tolist()

    def at(self, *widths: float) -> float:
        """The value at some widths, those beyond the marks taken as the outermost."""
        pairs = zip(self.marks, widths, strict=True)
        return _interpolated(self._rows, [_between(marks, width) for marks, width in pairs])


@dataclass(frozen=True)
class _Layer:
    """A layer's time over the channels of the groups that it makes and of those that it reads."""

    variables: tuple[Groups, ...]
    surface: Surface
    block: int | None


class MeasuredLatency:
    """The sum of the layers' times, and of what is between them.

    Args:
        layers: of the full model.
        between: milliseconds outside of layers, over the mean share of channels.
        full: channels of each group in the full model.
    """

    def __init__(self, layers: Sequence[_Layer], between: Surface, full: Sequence[int]) -> None:
        self._layers = list(layers)
        self._between = between
        self._full = list(full)

    def at(self, widths: Sequence[int], blocks: Sequence[bool]) -> float:
        """Milliseconds of a network with these widths and blocks, by the table."""
        pairs = zip(widths, self._full, strict=True)
        share = sum(width / full for width, full in pairs) / len(self._full)
        total = self._between.at(share)
        for layer in self._layers:
            if layer.block is None or blocks[layer.block]:
                sums = (float(sum(widths[group] for group in each)) for each in layer.variables)
                total += layer.surface.at(*sums)
        return total

    def table(self) -> list[Tensor]:
        """What was measured, for a file or for another process."""
        return [self._between.values, *(layer.surface.values for layer in self._layers)]

    def having(self, table: Sequence[Tensor]) -> MeasuredLatency:
        """The same network with what was measured at another time."""
        between, *values = table
        layers = [
            replace(layer, surface=replace(layer.surface, values=each))
            for layer, each in zip(self._layers, values, strict=True)
        ]
        return MeasuredLatency(layers, replace(self._between, values=between), self._full)


def measured_latency(
    model: nn.Module, skeleton: Skeleton, example_inputs: Sequence[Tensor]
) -> MeasuredLatency:
    """Measures every layer at a few widths of what it makes and of what it reads.

    On the CPU: processor time of one thread; elsewhere elapsed time. Evaluation mode, the least of
    some repeats, on the inputs that the layer meets in a copy of the model of those widths.

    Args:
        model: the full model, without factors.
        skeleton: its structures.
        example_inputs: the arguments of the forward pass; they decide the batch size.
    """
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        with undisturbed(model):
            found = _measured(model, skeleton, on_device(model, example_inputs))
    finally:
        torch.set_num_threads(threads)
    # All processes must choose by one table.
    shared: list[Any] = [found.table()]
    if dist.is_available() and dist.is_initialized():
        dist.broadcast_object_list(shared, src=0)
    return found.having(shared[0])


def _measured(model: nn.Module, skeleton: Skeleton, inputs: Sequence[Tensor]) -> MeasuredLatency:
    names = {id(module): name for name, module in model.named_modules()}
    mains: dict[str, Held] = {}
    for held in skeleton.tensors.values():
        if held.is_parameter:
            mains.setdefault(names[id(held.module)], held)
    calls = _calls(model, list(mains), inputs)
    layers = [
        _layer(model, skeleton, name, held, calls[name], inputs) for name, held in mains.items()
    ]
    full = [group.width for group in skeleton.groups]
    between = []
    plain = MeasuredLatency(layers, Surface((_SHARES,), torch.zeros(len(_SHARES))), full)
    for share in _SHARES:
        chosen = {group: _width(skeleton, group, share) for group in range(len(full))}
        whole = _milliseconds(_narrowed(model, skeleton, chosen), inputs, _PASSES)
        own = plain.at([chosen[group] for group in range(len(full))], [True] * len(skeleton.blocks))
        between.append(max(whole - own, 0.0))
    values = torch.tensor(between, dtype=torch.float64)
    return MeasuredLatency(layers, Surface.rising((_SHARES,), values), full)


def _layer(
    model: nn.Module,
    skeleton: Skeleton,
    name: str,
    held: Held,
    calls: Sequence[Tensor],
    inputs: Sequence[Tensor],
) -> _Layer:
    variables: list[Groups] = []
    for axis in held.axes:
        groups = tuple(group for group, _ in axis.owners)
        if groups not in variables:
            variables.append(groups)
    if len({group for each in variables for group in each}) < sum(map(len, variables)):
        # What a layer makes is part of what it reads: they cannot be varied apart.
        variables = [tuple(sorted({group for each in variables for group in each}))]
    values = torch.zeros([len(_SHARES)] * len(variables), dtype=torch.float64)
    marks = [
        tuple(float(sum(_width(skeleton, group, share) for group in each)) for share in _SHARES)
        for each in variables
    ]
    for place in _places(len(variables)):
        chosen = {
            group: _width(skeleton, group, _SHARES[position])
            for each, position in zip(variables, place, strict=True)
            for group in each
        }
        if isinstance(held.module, _ALONE):
            layer = _cut(skeleton, held.module, chosen)
            taken = _read(held.module, layer)
            parts = [call.narrow(_axis(held.module), 0, taken).contiguous() for call in calls]
            values[place] = sum(_milliseconds(layer, [each], _REPEATS) for each in parts)
        else:
            narrow = _narrowed(model, skeleton, chosen)
            values[place] = _inside(narrow, narrow.get_submodule(name), inputs)
    return _Layer(tuple(variables), Surface.rising(tuple(marks), values), held.block)


def _cut(skeleton: Skeleton, layer: nn.Module, chosen: dict[int, int]) -> nn.Module:
    """A copy of one layer with fewer channels."""
    present = [
        torch.arange(group.width) < chosen.get(number, group.width)
        for number, group in enumerate(skeleton.groups)
    ]
    twin = copy.deepcopy(layer)
    size = Sizes.of(twin)
    for held in skeleton.tensors.values():
        if held.module is layer:
            tensor = getattr(twin, held.attribute)
            data = tensor.detach()
            for axis, positions in enumerate(held.positions(present)):
                data = data.index_select(axis, positions.to(data.device))
            replace_data(tensor, data)
    size.refresh()
    return twin


def _read(full: nn.Module, layer: nn.Module) -> int:
    """How many features a cut layer takes."""
    for name in ("in_features", "in_channels", "num_features"):
        if hasattr(full, name):
            return int(getattr(layer, name))
    raise TypeError(type(full).__name__)


def _axis(layer: nn.Module) -> int:
    return -1 if isinstance(layer, nn.Linear) else 1


def _calls(
    model: nn.Module, names: Sequence[str], inputs: Sequence[Tensor]
) -> dict[str, list[Tensor]]:
    """What each layer is called with in the full model."""
    found: dict[str, list[Tensor]] = {name: [] for name in names}

    def note(name: str) -> Callable[[nn.Module, Any], None]:
        return lambda _, given: found[name].append(given[0])

    handles = [
        model.get_submodule(name).register_forward_pre_hook(note(name))
        for name in names
        if isinstance(model.get_submodule(name), _ALONE)
    ]
    try:
        model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _narrowed(model: nn.Module, skeleton: Skeleton, chosen: dict[int, int]) -> nn.Module:
    """A copy of the model with fewer channels."""
    twin = copy.deepcopy(model).eval()
    keep = {skeleton.groups[group].name: range(width) for group, width in chosen.items()}
    slice_channels(twin, skeleton.plan, keep)
    return twin


def _places(count: int) -> list[tuple[int, ...]]:
    places: list[tuple[int, ...]] = [()]
    for _ in range(count):
        places = [(*each, position) for each in places for position in range(len(_SHARES))]
    return places


def _width(skeleton: Skeleton, group: int, share: float) -> int:
    return max(1, round(share * skeleton.groups[group].width))


def _inside(model: nn.Module, layer: nn.Module, inputs: Sequence[Tensor]) -> float:
    """The time of one layer in a run of the model."""
    device = device_of(model)
    clock = _clock(device)
    spent: list[float] = []

    def begin(*_: Any) -> None:
        _wait(device)
        spent.append(-clock())

    def end(*_: Any) -> None:
        _wait(device)
        spent.append(clock())

    handles = [layer.register_forward_pre_hook(begin), layer.register_forward_hook(end)]
    best = float("inf")
    try:
        for _ in range(_PASSES + 1):
            spent.clear()
            model(*inputs)
            best = min(best, sum(spent))
    finally:
        for handle in handles:
            handle.remove()
    return 1e3 * best


def _milliseconds(module: nn.Module, inputs: Sequence[Tensor], repeats: int) -> float:
    device = device_of(module)
    clock = _clock(device)
    best = float("inf")
    for _ in range(repeats + 1):  # the first warms up, and is never the least by chance alone
        start = clock()
        module(*inputs)
        _wait(device)
        best = min(best, clock() - start)
    return 1e3 * best


def _clock(device: torch.device) -> Callable[[], float]:
    return time.thread_time if device.type == "cpu" else time.perf_counter


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _interpolated(rows: Any, places: Sequence[tuple[int, float]]) -> float:
    """The value at a place of nested rows, linear along each axis."""
    if not places:
        return float(rows)
    (low, share), *rest = places
    value = _interpolated(rows[low], rest)
    return (
        value if share == 0.0 else value * (1 - share) + share * _interpolated(rows[low + 1], rest)
    )


def _between(marks: Sequence[float], width: float) -> tuple[int, float]:
    """The mark below a width, and the share of the way to the next."""
    low = max(0, min(bisect.bisect_right(marks, width) - 1, len(marks) - 1))
    if low == len(marks) - 1 or width <= marks[low]:
        return low, 0.0
    return low, (width - marks[low]) / (marks[low + 1] - marks[low])
