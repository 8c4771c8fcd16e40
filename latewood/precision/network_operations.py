"""The operations of a packed network one by one, with the shapes that an input gives them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

import torch
from torch import Tensor

from latewood.errors import RequestError
from latewood.kernels.mixed_products import Taps, taps_of
from latewood.precision.fused_arithmetic import fused_multiply_add
from latewood.precision.packed_graph import NetworkGraph
from latewood.precision.packed_groups import PackedGroupedConv2d
from latewood.precision.packed_layers import PackedConv2d

__all__ = ["NotCompiled", "Operation", "OperationList", "listed_operations"]


class NotCompiled(Exception):
    """Why a network has no integer network: its message."""


@dataclass
class Operation:
    """One operation, the value of which others name by its place in the list.

    Args:
        kind: "input", "packed", "float", "pool", "affine", "add", "clip" or "flatten".
        sources: places of the values that it takes.
        shape: (channels, rows, columns) of its value for one image.
        axes: of its value with that of the images, 2 or 4.
        details: what else it takes, by name.
    """

    kind: str
    sources: list[int]
    shape: tuple[int, int, int]
    axes: int
    details: dict[str, Any] = field(default_factory=dict)


@dataclass
class OperationList:
    """All operations of a network, its output, and the only batch if it allows no other."""

    operations: list[Operation]
    output: int
    batch: int | None


class _Batch:
    """The number of images, as a size."""


_BATCH: Final = _Batch()
_ALIASES: Final = (
    *("aten.clone.default", "aten.contiguous.default", "aten.detach.default"),
    *("aten.alias.default", "aten.dropout.default", "aten.feature_dropout.default"),
    *("aten.dropout_.default", "aten.identity.default"),
)


def listed_operations(graph: NetworkGraph, shape: tuple[int, ...]) -> OperationList:
    """The operations of a graph for inputs of a shape.

    Args:
        graph: of a packed model.
        shape: of one image or vector of the input, without the axis of the images.

    Raises:
        NotCompiled: an operation or a shape that integer networks do not have.
    """
    reader = _Reader(graph, shape)
    for place, node in enumerate(graph.nodes):
        reader.read(place, node)
    form, leaves = graph.output
    if form != "*" or len(leaves) != 1 or not isinstance(leaves[0], dict):
        raise NotCompiled("it returns more than one tensor")
    operations, output = _needed(reader.operations, reader.value(leaves[0]))
    return OperationList(operations, output, reader.batch)


def _needed(operations: list[Operation], output: int) -> tuple[list[Operation], int]:
    """The input and what the output depends on: nothing reads the others, auxiliary heads say."""
    needed = {0, output}
    for place in range(output, -1, -1):
        if place in needed:
            needed.update(operations[place].sources)
    if output == 0:
        raise NotCompiled("it returns its input")
    places = {old: new for new, old in enumerate(sorted(needed))}
    kept = [
        replace(operations[old], sources=[places[source] for source in operations[old].sources])
        for old in places
    ]
    return kept, places[output]


class _Reader:
    def __init__(self, graph: NetworkGraph, shape: tuple[int, ...]) -> None:
        self.graph, self.shape = graph, shape
        self.operations: list[Operation] = []
        self.values: dict[int, Any] = {}  # by node: a place in operations, a tensor, a size
        self.batch: int | None = None
        self.readers: dict[int, list[int]] = {}
        for place, (_, _, args, kwargs) in enumerate(graph.nodes):
            for used in _nodes_in([args, kwargs]):
                self.readers.setdefault(used, []).append(place)
        for used in _nodes_in(graph.output[1]):
            self.readers.setdefault(used, []).append(len(graph.nodes))

    def read(self, place: int, node: list[Any]) -> None:
        kind, target, args, kwargs = node
        if kind == "input":
            if self.operations:
                raise NotCompiled("it takes more than one tensor")
            self.values[place] = self._input()
        elif kind == "tensor":
            self.values[place] = self.graph.tensors[target]
        elif kind == "layer":
            self.values[place] = self._layer(target, self.value(args[0]))
        else:
            if target.split(".")[1].endswith("_"):
                self._require_last(place, args[0]["node"], target)
            function = _RULES.get(target.replace("_.", ".") if target not in _RULES else target)
            if function is None:
                raise NotCompiled(f"the operation {target}")
            self.values[place] = function(self, target, args, kwargs)

    def _require_last(self, place: int, changed: int, target: str) -> None:
        """What an operation writes to in place may not be read later under another name."""
        held = self.values.get(changed)
        for node, value in self.values.items():
            same = (
                isinstance(held, int)
                and isinstance(value, int)
                and self._root(value) == self._root(held)
            )
            if same and any(reader > place for reader in self.readers.get(node, ())):
                raise NotCompiled(f"the operation {target} on what is read later")

    def _root(self, place: int) -> int:
        while self.operations[place].kind == "flatten":
            place = self.operations[place].sources[0]
        return place

    def value(self, argument: Any) -> int:
        held = self.values.get(argument["node"]) if isinstance(argument, dict) else None
        if not isinstance(held, int) or isinstance(held, bool):
            raise NotCompiled("an operation on something else than the network's values")
        return held

    def tensor(self, argument: Any) -> Tensor | None:
        if argument is None:
            return None
        held = self.values.get(argument["node"]) if isinstance(argument, dict) else None
        if not isinstance(held, Tensor) or held.dtype != torch.float32 or not held.is_cpu:
            raise NotCompiled("a weight that is no tensor of float32 on the CPU")
        return held

    def size(self, argument: Any) -> Any:
        if isinstance(argument, dict):
            held = self.values.get(argument.get("node", -1))
            if isinstance(held, _Size):
                return held.number
            if held is _BATCH:
                return held
        elif isinstance(argument, int) and not isinstance(argument, bool):
            return argument
        raise NotCompiled("a size that depends on more than the images")

    def add(
        self, kind: str, sources: list[int], shape: tuple[int, int, int], axes: int, **details: Any
    ) -> int:
        if min(shape) < 1 or math.prod(shape) >= 1 << 31:
            raise NotCompiled(f"a value of the shape {shape}")
        self.operations.append(Operation(kind, sources, shape, axes, details))
        return len(self.operations) - 1

    def _input(self) -> int:
        if len(self.shape) not in (1, 3):
            raise NotCompiled(f"an input of {len(self.shape) + 1} axes; expected 2 or 4")
        rows, columns = self.shape[1:] if len(self.shape) == 3 else (1, 1)
        return self.add("input", [], (self.shape[0], rows, columns), len(self.shape) + 1)

    def _layer(self, name: str, source: int) -> int:
        layer = self.graph.layers[name]
        if not layer.packed_codes.is_cpu:
            raise NotCompiled(f"the layer {name} on another device than the CPU")
        given = self.operations[source]
        convolution = isinstance(layer, PackedConv2d)
        taps = layer.taps if isinstance(layer, PackedConv2d) else Taps()
        if isinstance(layer, PackedGroupedConv2d):
            raise NotCompiled(f"the layer {name}, a packed convolution in groups")
        if given.axes != (4 if convolution else 2) or given.shape[0] != layer.shape[1]:
            raise NotCompiled(f"the layer {name} on the shape {given.shape} of {given.axes} axes")
        kernel = (layer.shape[2], layer.shape[3]) if convolution else (1, 1)
        shape = (layer.shape[0], *_sizes(taps, given.shape, kernel))
        if not layer.quantises_inputs:
            weight = layer.dequantized().detach().cpu().float()
            weight = weight if convolution else weight[:, :, None, None]
            details = {"weight": weight, "bias": layer.bias, "taps": taps, "groups": 1}
            return self.add("float", [source], shape, given.axes, name=name, **details)
        return self.add("packed", [source], shape, given.axes, layer=layer, taps=taps, name=name)


@dataclass(frozen=True)
class _Size:
    number: int


def _nodes_in(argument: Any) -> list[int]:
    if isinstance(argument, dict):
        if set(argument) == {"node"}:
            return [argument["node"]]
        return [used for item in argument.values() for used in _nodes_in(item)]
    if isinstance(argument, list):
        return [used for item in argument for used in _nodes_in(item)]
    return []


def _sizes(taps: Taps, shape: tuple[int, int, int], kernel: tuple[int, int]) -> tuple[int, int]:
    try:
        return taps.output_sizes((shape[1], shape[2]), kernel)
    except RequestError as error:
        raise NotCompiled(str(error)) from error


def _bound(names: str, args: list[Any], kwargs: dict[str, Any], **defaults: Any) -> dict[str, Any]:
    """Arguments by name, in the order of torch's signature."""
    given = dict(zip(names.split(), args, strict=False)) | kwargs
    if len(args) > len(names.split()) or not set(kwargs) <= set(names.split()):
        raise NotCompiled(f"an operation with the arguments {sorted(kwargs)}")
    return {name: given.get(name, defaults.get(name)) for name in names.split()}


def _pair(value: Any, default: tuple[int, int]) -> tuple[int, int]:
    numbers = [value] if isinstance(value, int) else list(value or default)
    if not all(isinstance(n, int) for n in numbers):
        raise NotCompiled("sizes that are no plain numbers")
    return (numbers[0], numbers[-1])


def _convolution(reader: _Reader, target: str, args: list[Any], kwargs: dict[str, Any]) -> int:
    names = "input weight bias stride padding dilation groups"
    given = _bound(names, args, kwargs, stride=[1, 1], padding=[0, 0], dilation=[1, 1], groups=1)
    source = reader.value(given["input"])
    weight, bias = reader.tensor(given["weight"]), reader.tensor(given["bias"])
    operation = reader.operations[source]
    assert weight is not None
    if operation.axes != 4:
        raise NotCompiled("a convolution of one image without its axis")
    kernel = (weight.shape[2], weight.shape[3])
    padding = given["padding"]
    around = padding if isinstance(padding, str) else _pair(padding, (0, 0))
    steps, apart = _pair(given["stride"], (1, 1)), _pair(given["dilation"], (1, 1))
    try:
        taps = taps_of(kernel, around, steps, apart)
    except RequestError as error:
        raise NotCompiled(str(error)) from error
    shape = (weight.shape[0], *_sizes(taps, operation.shape, kernel))
    name = _tensor_name(reader, given["weight"])
    details = {"weight": weight, "bias": bias, "taps": taps, "groups": given["groups"]}
    return reader.add("float", [source], shape, 4, name=name, **details)


def _linear(reader: _Reader, target: str, args: list[Any], kwargs: dict[str, Any]) -> int:
    given = _bound("input weight bias", args, kwargs)
    source = reader.value(given["input"])
    weight, bias = reader.tensor(given["weight"]), reader.tensor(given["bias"])
    assert weight is not None
    if reader.operations[source].axes != 2:
        raise NotCompiled("a linear layer on more than two axes")
    name = _tensor_name(reader, given["weight"])
    details = {"weight": weight[:, :, None, None], "bias": bias, "taps": Taps(), "groups": 1}
    return reader.add("float", [source], (weight.shape[0], 1, 1), 2, name=name, **details)


def _tensor_name(reader: _Reader, argument: Any) -> str:
    return str(reader.graph.nodes[argument["node"]][1])


def _batch_norm(reader: _Reader, target: str, args: list[Any], kwargs: dict[str, Any]) -> int:
    names = "input weight bias mean variance training momentum eps cudnn"
    given = _bound(names, args, kwargs)
    source = reader.value(given["input"])
    weight, bias, mean, variance = (
        reader.tensor(given[name]) for name in ("weight", "bias", "mean", "variance")
    )
    if given["training"] or mean is None or variance is None:
        raise NotCompiled("a batch norm with the statistics of its batch")
    # As torch forms them, in float32.
    factor = torch.rsqrt(variance + given["eps"])
    if weight is not None:
        factor = factor * weight
    addend = fused_multiply_add(mean, -factor, torch.zeros_like(mean) if bias is None else bias)
    operation = reader.operations[source]
    return reader.add(
        "affine", [source], operation.shape, operation.axes, factor=factor, addend=addend
    )


def _add(reader: _Reader, target: str, args: list[Any], kwargs: dict[str, Any]) -> int:
    given = _bound("input other alpha", args, kwargs, alpha=1)
    one, other = reader.value(given["input"]), reader.value(given["other"])
    first, second = reader.operations[one], reader.operations[other]
    if given["alpha"] != 1 or (first.shape, first.axes) != (second.shape, second.axes):
        raise NotCompiled("a sum of different shapes")
    return reader.add("add", [one, other], first.shape, first.axes)


def _clip(reader: _Reader, target: str, args: list[Any], kwargs: dict[str, Any]) -> int:
    name = target.split(".")[1].rstrip("_")
    defaults: dict[str, Any] = {
        "relu": {"low": 0.0},
        "relu6": {"low": 0.0, "high": 6.0},
        "hardtanh": {"low": -1.0, "high": 1.0},
    }.get(name, {})
    names = {"clamp": "input low high", "clamp_min": "input low", "clamp_max": "input high"}
    given = _bound(names.get(name, "input low high"), args, kwargs, **defaults)
    source = reader.value(given["input"])
    low, high = given.get("low"), given.get("high")
    if not all(bound is None or isinstance(bound, (int, float)) for bound in (low, high)):
        raise NotCompiled(f"the operation {target} with bounds that are no numbers")
    if low is not None and high is not None and low > high:
        raise NotCompiled(f"the operation {target} from {low} to {high}")
    operation = reader.operations[source]
    bounds = {"low": _single(low), "high": _single(high)}
    return reader.add("clip", [source], operation.shape, operation.axes, **bounds)


def _single(bound: float | None) -> float | None:
    return None if bound is None else float(torch.tensor(float(bound), dtype=torch.float32))


def _pool(reader: _Reader, target: str, args: list[Any], kwargs: dict[str, Any]) -> int:
    largest = "max" in target
    names = (
        "input kernel stride padding dilation ceil"
        if largest
        else "input kernel stride padding ceil counts divisor"
    )
    given = _bound(names, args, kwargs, padding=[0, 0], dilation=[1, 1], ceil=False, counts=True)
    source = reader.value(given["input"])
    operation = reader.operations[source]
    if given["ceil"] or operation.axes != 4:
        raise NotCompiled(f"the operation {target} in a form with rounded-up sizes or three axes")
    kernel = _pair(given["kernel"], (1, 1))
    around, apart = _pair(given["padding"], (0, 0)), _pair(given.get("dilation"), (1, 1))
    taps = Taps(_pair(given["stride"], kernel), around, around, apart)
    shape = (operation.shape[0], *_sizes(taps, operation.shape, kernel))
    details = {
        "pool": "max" if largest else "average",
        "kernel": kernel,
        "taps": taps,
        "counts_padding": bool(given.get("counts")),
        "divisor": given.get("divisor"),
    }
    return reader.add("pool", [source], shape, 4, **details)


def _mean(reader: _Reader, target: str, args: list[Any], kwargs: dict[str, Any]) -> int:
    given = _bound("input axes keep dtype", args, kwargs, keep=False)
    source = reader.value(given["input"])
    operation = reader.operations[source]
    axes = sorted(axis % 4 for axis in given["axes"] or ())
    if operation.axes != 4 or axes != [2, 3] or given["dtype"] is not None:
        raise NotCompiled("a mean over other axes than rows and columns")
    return _whole_mean(reader, source, 4 if given["keep"] else 2)


def _whole_mean(reader: _Reader, source: int, axes: int) -> int:
    shape = reader.operations[source].shape
    details = {"pool": "mean", "kernel": shape[1:], "taps": Taps(), "counts_padding": True}
    return reader.add("pool", [source], (shape[0], 1, 1), axes, divisor=None, **details)


def _adaptive(reader: _Reader, target: str, args: list[Any], kwargs: dict[str, Any]) -> int:
    given = _bound("input sizes", args, kwargs)
    source = reader.value(given["input"])
    operation = reader.operations[source]
    sizes = _pair(given["sizes"], (1, 1))
    if operation.axes != 4 or (sizes != (1, 1) and sizes != operation.shape[1:]):
        raise NotCompiled(f"the operation {target} from {operation.shape[1:]} to {sizes}")
    return source if sizes == operation.shape[1:] != (1, 1) else _whole_mean(reader, source, 4)


def _flatten(reader: _Reader, target: str, args: list[Any], kwargs: dict[str, Any]) -> int:
    source = reader.value(args[0])
    operation = reader.operations[source]
    if "flatten" in target:
        given = _bound("input start end", args, kwargs, start=0, end=-1)
        if given["start"] % operation.axes != 1 or given["end"] % operation.axes + 1 != (
            operation.axes
        ):
            raise NotCompiled("a flattening of other axes than those behind the images")
    else:
        sizes = [reader.size(size) for size in args[1]]
        if len(sizes) != 2 or sizes[1] not in (-1, math.prod(operation.shape)):
            raise NotCompiled(f"a view as {len(sizes)} axes")
        if sizes[0] is not _BATCH and sizes[0] != -1:
            reader.batch = sizes[0]
        if sizes == [-1, -1]:
            raise NotCompiled("a view of unknown sizes")
    if operation.axes == 2:
        return source
    return reader.add("flatten", [source], (math.prod(operation.shape), 1, 1), 2)


def _same(reader: _Reader, target: str, args: list[Any], kwargs: dict[str, Any]) -> int:
    if "dropout" in target and args[2:3] != [False]:
        raise NotCompiled("dropout as in training")
    return reader.value(args[0])


def _size(reader: _Reader, target: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
    operation = reader.operations[reader.value(args[0])]
    axis = args[1] % operation.axes
    return _BATCH if axis == 0 else _Size(operation.shape[axis - 1])


_RULES: Final[dict[str, Callable[[_Reader, str, list[Any], dict[str, Any]], Any]]] = {
    "aten.conv2d.default": _convolution,
    "aten.conv2d.padding": _convolution,
    "aten.linear.default": _linear,
    "aten.batch_norm.default": _batch_norm,
    "aten.add.Tensor": _add,
    "aten.relu.default": _clip,
    "aten.relu6.default": _clip,
    "aten.hardtanh.default": _clip,
    "aten.clamp.default": _clip,
    "aten.clamp_min.default": _clip,
    "aten.clamp_max.default": _clip,
    "aten.max_pool2d.default": _pool,
    "aten.avg_pool2d.default": _pool,
    "aten.mean.dim": _mean,
    "aten.adaptive_avg_pool2d.default": _adaptive,
    "aten.flatten.using_ints": _flatten,
    "aten.view.default": _flatten,
    "aten.reshape.default": _flatten,
    "aten.sym_size.int": _size,
    **dict.fromkeys(_ALIASES, _same),
}
