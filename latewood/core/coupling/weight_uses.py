"""In which form an operation uses a weight: its axes, its biases, and its fan-in."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from latewood.core.coupling.labels import Used
from latewood.core.coupling.traced_call import Call

__all__ = ["WeightUse", "weight_uses"]


@dataclass(frozen=True)
class WeightUse:
    """A weight in one operation.

    Args:
        weight: its name.
        inputs: the axis that is summed over, if there is one.
        outputs: the axis of what it makes.
        rows: labels of the outputs.
        fan_in: products in one output.
        biases: names of the vectors that are added, and where on them the first row's entry is.
        lookup: whether nothing is read: rows are looked up, or it is a table of activations.
    """

    weight: str
    inputs: int | None
    outputs: int | None
    rows: Tensor | None
    fan_in: int
    biases: tuple[tuple[str, int], ...] = ()
    lookup: bool = False


def weight_uses(call: Call, used: Sequence[Used]) -> Iterator[WeightUse]:
    """The weights of two or more axes of an operation.

    Args:
        call: the operation.
        used: what its rule took for axes of weights.
    """
    weights: dict[str, list[Used]] = {}
    for axis in used:
        if axis.ndim > 1:
            weights.setdefault(axis.name, []).append(axis)
    biases = tuple(dict.fromkeys((axis.name, 0) for axis in used if axis.ndim == 1))
    for name, axes in weights.items():
        convolution = call.name.startswith("conv")
        # A bias written as a matrix of one row is none.
        if convolution or any(axis.role != "per_channel" for axis in axes):
            use = _convolution if convolution else _weight_use
            yield use(call, name, axes, biases)


def _weight_use(
    call: Call, name: str, axes: Sequence[Used], biases: tuple[tuple[str, int], ...]
) -> WeightUse:
    inputs, outputs = _sides(axes)
    out = None if outputs is None else outputs.axis
    rows = None if outputs is None else outputs.labels
    if call.name == "embedding":
        return WeightUse(name, None, out, rows, 1, lookup=True)
    fan_in = 1 if inputs is None else len(inputs.labels)
    return WeightUse(name, None if inputs is None else inputs.axis, out, rows, fan_in, biases)


def _sides(axes: Sequence[Used]) -> tuple[Used | None, Used | None]:
    inputs = next((axis for axis in axes if axis.role == "consumer"), None)
    outputs = next((axis for axis in axes if axis.role != "consumer"), None)
    return inputs, outputs


def _convolution(
    call: Call, name: str, axes: Sequence[Used], biases: tuple[tuple[str, int], ...]
) -> WeightUse:
    inputs, outputs = _sides(axes)
    weight, groups = call.argument(1, "weight"), call.argument(6, "groups", 1)
    fan_in = math.prod(weight.shape[1:])
    axis = None if outputs is None else outputs.axis
    if "transpose" in call.name:
        # Of the kernel's places one in as many as the stride reaches each output.
        stride = call.argument(3, "stride", 1)
        spatial = weight.ndim - 2
        strides = [stride] * spatial if isinstance(stride, int) else list(stride) * spatial
        area = math.prod(weight.shape[2:]) / math.prod(strides[:spatial])
        fan_in = math.ceil(weight.shape[0] // groups * area)
        axis = 1
    rows = None if outputs is None or groups != 1 else outputs.labels
    in_axis = None if inputs is None else inputs.axis
    return WeightUse(name, in_axis, axis, rows, int(fan_in), biases)
