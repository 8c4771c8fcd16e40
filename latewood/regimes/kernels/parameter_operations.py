"""Watches which operations of a model read a parameter, and what each example gives them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from latewood.regimes.kernels.gradient_pieces import Dense, Grouped, Lookup, Outer, Piece

__all__ = ["LAYOUTS", "Operation", "OperationWatcher"]

LAYOUTS: Final = ("first", "second", "minor")
"""Where in a tensor the examples may be: its first axis, alone or as the slow part of it; its
second axis; or the fast part of its first."""


@dataclass(eq=False)
class Operation:
    """A call that reads parameters, in a form whose gradients are known.

    Args:
        kind: "linear", "conv", "lookup", "norm" or "element".
        weight: name of the parameter, if it is one.
        bias: name of the bias, if it is one.
        edge: of the graph (``GradientEdge``), where gradients of what it returned arrive.
        shape: of what it returned.
        reads: what the weight's gradient needs besides: the input, in the operation's own form.
        settings: numbers of the operation.
    """

    kind: str
    weight: str | None
    bias: str | None
    edge: Any
    shape: tuple[int, ...]
    reads: Tensor | None
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The parameters that it reads."""
        return [name for name in (self.weight, self.bias) if name is not None]

    def pieces(self, signals: Tensor, examples: int, layout: str) -> list[tuple[str, Piece]]:
        """The gradients of its parameters.

        Args:
            signals: (C, *shape), of the outputs in what it returned.
            examples: their number N.
            layout: where they are in what it returned.
        """
        return _PIECES[self.kind](self, signals, examples, layout)

    def divides(self, examples: int, layout: str) -> bool:
        """Whether what it returned can hold so many examples in this layout."""
        shape = self.shape
        if layout == "second":
            return (
                len(shape) > 2
                and shape[1] == examples
                and self.kind in ("linear", "norm", "lookup")
            )
        fits = len(shape) > 1 and shape[0] % examples == 0 and shape[0] > 0
        if self.kind == "element":
            ours = self.settings["shape"]
            fits = fits and (len(ours) < len(shape) or ours[0] == 1)
        return fits and (layout == "first" or self.kind in ("linear", "norm", "lookup"))


def _by_example(tensor: Tensor, examples: int, layout: str, lead: int) -> Tensor:
    """(lead..., ..., F) as (lead..., N, S, F)."""
    if layout == "second":
        tensor = tensor.transpose(lead, lead + 1)
    elif layout == "minor":
        tensor = tensor.unflatten(lead, (-1, examples)).transpose(lead, lead + 1)
    return tensor.reshape(*tensor.shape[:lead], examples, -1, tensor.shape[-1])


def _linear(op: Operation, signals: Tensor, examples: int, layout: str) -> list[tuple[str, Piece]]:
    g = _by_example(signals, examples, layout, 1)
    result: list[tuple[str, Piece]] = []
    if op.weight is not None:
        assert op.reads is not None
        a = _by_example(op.reads, examples, layout, 0)
        result.append((op.weight, Outer(g, a, op.settings["transposed"])))
    if op.bias is not None:
        result.append((op.bias, Dense(g.sum(2))))
    return result


def _conv(op: Operation, signals: Tensor, examples: int, _: str) -> list[tuple[str, Piece]]:
    groups = op.settings["groups"]
    count, channels = signals.shape[0], signals.shape[2]
    # (C, N k, o, ...) -> (C, N, G, k S, o / G)
    g = signals.reshape(count, examples, -1, groups, channels // groups, *signals.shape[3:])
    g = g.flatten(5).permute(0, 1, 3, 2, 5, 4).flatten(3, 4)
    result: list[tuple[str, Piece]] = []
    if op.weight is not None:
        assert op.reads is not None
        patches = _patches(op.reads, op.settings)  # (N k, G, S, i)
        a = patches.unflatten(0, (examples, -1)).transpose(1, 2).flatten(2, 3)
        piece = Outer(g[:, :, 0], a[:, 0]) if groups == 1 else Grouped(g, a)
        result.append((op.weight, piece))
    if op.bias is not None:
        result.append((op.bias, Dense(g.sum(3).flatten(2))))
    return result


def _patches(inputs: Tensor, settings: dict[str, Any]) -> Tensor:
    """(B, G, S, i), what each position of a convolution's output reads."""
    kernel, stride = settings["kernel"], settings["stride"]
    dilation, groups, padding = settings["dilation"], settings["groups"], settings["padding"]
    padded = F.pad(inputs, padding) if any(padding) else inputs
    padded = padded.contiguous()
    sizes = [
        (size - d * (k - 1) - 1) // s + 1
        for size, k, s, d in zip(padded.shape[2:], kernel, stride, dilation, strict=True)
    ]
    steps = padded.stride()[2:]
    view = padded.as_strided(
        (*padded.shape[:2], *sizes, *kernel),
        (
            *padded.stride()[:2],
            *(step * s for step, s in zip(steps, stride, strict=True)),
            *(step * d for step, d in zip(steps, dilation, strict=True)),
        ),
    )
    n = len(kernel)
    # (B, c, out..., k...) -> (B, G, S, c / G * k...)
    view = view.unflatten(1, (groups, -1))
    order = (0, 1, *range(3, 3 + n), 2, *range(3 + n, 3 + 2 * n))
    batch = padded.shape[0]
    per_group = padded.shape[1] // groups
    patches: Tensor = view.permute(order).reshape(
        batch, groups, math.prod(sizes), per_group * math.prod(kernel)
    )
    return patches


def _lookup(op: Operation, signals: Tensor, examples: int, layout: str) -> list[tuple[str, Piece]]:
    assert op.reads is not None and op.weight is not None
    g = _by_example(signals, examples, layout, 1)
    indices = _by_example(op.reads[..., None], examples, layout, 0)[..., 0]
    fixed = op.settings["padding_idx"]
    if fixed is not None:
        g = g * (indices != fixed)[..., None]
    return [(op.weight, Lookup(g, indices, op.settings["rows"]))]


def _norm(op: Operation, signals: Tensor, examples: int, layout: str) -> list[tuple[str, Piece]]:
    """Of norms: the features that have gains of their own are moved to the end, then summed."""
    last = op.settings["features"]

    def summed(tensor: Tensor) -> Tensor:
        if op.settings["channels"]:
            # (C, N k, c, ...): a gain for each channel.
            channels = tensor.shape[2]
            return tensor.reshape(
                len(tensor), examples, -1, channels, math.prod(tensor.shape[3:])
            ).sum((2, 4))
        flat = tensor.flatten(tensor.ndim - last)
        return _by_example(flat, examples, layout, 1).sum(2)

    result: list[tuple[str, Piece]] = []
    if op.weight is not None:
        assert op.reads is not None
        result.append((op.weight, Dense(summed(signals * op.reads))))
    if op.bias is not None:
        result.append((op.bias, Dense(summed(signals))))
    return result


def _element(op: Operation, signals: Tensor, examples: int, _: str) -> list[tuple[str, Piece]]:
    """Of sums and products with a parameter that is broadcast."""
    assert op.weight is not None
    ours = op.settings["shape"]
    g = signals if op.reads is None else signals * op.reads
    g = g * op.settings["sign"] if op.settings["sign"] != 1 else g
    g = g.reshape(len(g), examples, -1, *g.shape[2:]).sum(2)
    inner = ours[1:] if len(ours) == len(op.shape) else ours
    # Axes that the parameter has not, and those of size 1, are summed.
    extra = g.ndim - 2 - len(inner)
    if extra:
        g = g.sum(tuple(range(2, 2 + extra)))
    for axis, size in enumerate(inner, start=2):
        if size == 1 and g.shape[axis] != 1:
            g = g.sum(axis, keepdim=True)
    return [(op.weight, Dense(g.reshape(len(g), examples, -1)))]


_PIECES: Final[Mapping[str, Callable[..., list[tuple[str, Piece]]]]] = {
    "linear": _linear,
    "conv": _conv,
    "lookup": _lookup,
    "norm": _norm,
    "element": _element,
}


class OperationWatcher(TorchFunctionMode):
    """Notes every operation that reads a parameter while a model runs.

    Args:
        names: of the parameters, by the ids of the tensors that stand for them in this run.
    """

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self.names = names
        self.operations: list[Operation] = []
        self.unknown: dict[str, str] = {}
        self._transposed: dict[int, tuple[Tensor, str]] = {}

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        used = self._parameters([*args, *kwargs.values()])
        if not used:
            return function(*args, **kwargs)
        name = getattr(function, "__name__", "")
        if name == "__get__":
            name = getattr(getattr(function, "__self__", None), "__name__", "")
        before = len(self.operations)
        reader = _READERS.get(name)
        # What it reads is noted first: it may write into it.
        noted = None
        if reader is not None and _OWNERS.get(name, function) is function:
            noted = reader(self, name, args, kwargs)
        output = function(*args, **kwargs)
        if not _differentiable(output):
            return output
        if noted is not None and isinstance(output, Tensor):
            noted.edge = get_gradient_edge(output)
            noted.shape = tuple(output.shape)
            if set(noted.names) >= used and _consistent(noted):
                self.operations.append(noted)
                return output
        turned = self._as_transpose(name, args, kwargs, output)
        if not turned and len(self.operations) == before:
            self.unknown.update(dict.fromkeys(used, name))
        return output

    def name_of(self, tensor: Any) -> str | None:
        """The parameter that a tensor is."""
        return self.names.get(id(tensor))

    def matrix_of(self, tensor: Any) -> tuple[str, bool] | None:
        """The parameter that a matrix is, and whether it is its transpose."""
        if id(tensor) in self._transposed:
            return self._transposed[id(tensor)][1], True
        name = self.name_of(tensor)
        return None if name is None else (name, False)

    def _parameters(self, values: list[Any]) -> set[str]:
        found = set()
        for value in values:
            if isinstance(value, Tensor):
                matrix = self.matrix_of(value)
                if matrix is not None:
                    found.add(matrix[0])
            elif isinstance(value, tuple | list):
                found |= self._parameters(list(value))
        return found

    def _as_transpose(self, name: str, args: Any, kwargs: Any, output: Any) -> bool:
        source = args[0] if args else None
        known = self.name_of(source)
        if known is None or not isinstance(source, Tensor) or source.ndim != 2 or kwargs:
            return False
        whole = name in ("T", "mT", "t", "numpy_T") and len(args) == 1
        swapped = name in ("transpose", "swapaxes") and {int(a) % 2 for a in args[1:]} == {0, 1}
        if whole or swapped:
            self._transposed[id(output)] = (output, known)
        return whole or swapped


def _differentiable(output: Any) -> bool:
    if isinstance(output, Tensor):
        return output.requires_grad
    if isinstance(output, tuple | list):
        return any(map(_differentiable, output))
    return False


def _consistent(op: Operation) -> bool:
    """Whether the operation broadcast nothing but its parameters."""
    if op.kind in ("element", "norm") and op.reads is not None:
        return tuple(op.reads.shape) == op.shape
    return True


def _argument(args: Any, kwargs: Any, position: int, name: str, default: Any = None) -> Any:
    return args[position] if len(args) > position else kwargs.get(name, default)


def _read_linear(watcher: OperationWatcher, _: str, args: Any, kwargs: Any) -> Operation | None:
    inputs, weight = _argument(args, kwargs, 0, "input"), _argument(args, kwargs, 1, "weight")
    matrix = watcher.matrix_of(weight)
    bias = watcher.name_of(_argument(args, kwargs, 2, "bias"))
    if inputs.ndim < 2 or watcher.matrix_of(inputs) is not None or weight.ndim != 2:
        return None
    return _linear_operation(watcher, inputs, matrix, bias, turned=False)


def _linear_operation(
    watcher: OperationWatcher,
    inputs: Tensor,
    matrix: tuple[str, bool] | None,
    bias: str | None,
    *,
    turned: bool,
) -> Operation:
    name, transposed = matrix or (None, False)
    reads = inputs.detach() if name is not None else None
    return Operation("linear", name, bias, None, (), reads, {"transposed": transposed != turned})


def _read_addmm(watcher: OperationWatcher, _: str, args: Any, kwargs: Any) -> Operation | None:
    if len(args) != 3 or kwargs or watcher.matrix_of(args[1]) is not None or args[0].ndim != 1:
        return None
    matrix, bias = watcher.matrix_of(args[2]), watcher.name_of(args[0])
    return _linear_operation(watcher, args[1], matrix, bias, turned=True)


def _read_matmul(watcher: OperationWatcher, _: str, args: Any, kwargs: Any) -> Operation | None:
    if len(args) != 2 or kwargs or watcher.matrix_of(args[0]) is not None:
        return None
    matrix = watcher.matrix_of(args[1])
    if matrix is None or args[1].ndim != 2 or args[0].ndim < 2:
        return None
    return _linear_operation(watcher, args[0], matrix, None, turned=True)


def _read_conv(watcher: OperationWatcher, name: str, args: Any, kwargs: Any) -> Operation | None:
    inputs, weight = _argument(args, kwargs, 0, "input"), _argument(args, kwargs, 1, "weight")
    n = int(name[4])
    if inputs.ndim != n + 2 or watcher.name_of(inputs) is not None:
        return None

    def each(position: int, key: str, default: int) -> tuple[int, ...]:
        value = _argument(args, kwargs, position, key, default)
        values = (value,) if isinstance(value, int) else tuple(value)
        return values * n if len(values) == 1 else values

    kernel, dilation = tuple(weight.shape[2:]), each(5, "dilation", 1)
    padding = _argument(args, kwargs, 4, "padding", 0)
    if padding == "valid":
        sides = [(0, 0)] * n
    elif padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        sides = [(total // 2, total - total // 2) for total in totals]
    else:
        sides = [(size, size) for size in each(4, "padding", 0)]
    settings = {
        "kernel": kernel,
        "stride": each(3, "stride", 1),
        "dilation": dilation,
        "groups": _argument(args, kwargs, 6, "groups", 1),
        "padding": [side for pair in reversed(sides) for side in pair],
    }
    own, bias = watcher.name_of(weight), watcher.name_of(_argument(args, kwargs, 2, "bias"))
    reads = inputs.detach() if own is not None else None
    return Operation("conv", own, bias, None, (), reads, settings)


def _read_embedding(watcher: OperationWatcher, _: str, args: Any, kwargs: Any) -> Operation | None:
    indices, weight = _argument(args, kwargs, 0, "input"), _argument(args, kwargs, 1, "weight")
    if _argument(args, kwargs, 3, "max_norm") is not None:
        return None
    if _argument(args, kwargs, 5, "scale_grad_by_freq", False):
        return None
    padding = _argument(args, kwargs, 2, "padding_idx")
    if padding is not None and padding < 0:
        padding += weight.shape[0]
    settings = {"rows": weight.shape[0], "padding_idx": padding}
    return Operation("lookup", watcher.name_of(weight), None, None, (), indices.detach(), settings)


def _read_norm(watcher: OperationWatcher, name: str, args: Any, kwargs: Any) -> Operation | None:
    function, positions = _NORMS[name]
    inputs = _argument(args, kwargs, 0, "input")
    weight_at, bias_at = positions
    weight = watcher.name_of(_argument(args, kwargs, weight_at, "weight"))
    bias = watcher.name_of(_argument(args, kwargs, bias_at, "bias")) if bias_at else None
    features = 1
    if name in ("layer_norm", "rms_norm"):
        features = len(_argument(args, kwargs, 1, "normalized_shape"))
    plain = [None if index in positions and index else value for index, value in enumerate(args)]
    named = {key: value for key, value in kwargs.items() if key not in ("weight", "bias")}
    with torch.no_grad():
        normalised = function(*plain, **named) if weight is not None else None
    settings = {"features": features, "channels": name not in ("layer_norm", "rms_norm")}
    return Operation("norm", weight, bias, None, tuple(inputs.shape), normalised, settings)


def _read_element(watcher: OperationWatcher, name: str, args: Any, kwargs: Any) -> Operation | None:
    if len(args) != 2 or kwargs:
        return None
    position = 0 if watcher.name_of(args[0]) is not None else 1
    other = args[1 - position]
    own = watcher.name_of(args[position])
    if own is None or watcher.matrix_of(other) is not None:
        return None
    settings = {"shape": tuple(args[position].shape), "sign": 1}
    if "sub" in name and position == (0 if "rsub" in name else 1):
        settings["sign"] = -1
    reads = None
    if "mul" in name:
        if not isinstance(other, Tensor):
            return None
        reads = other.detach()
    return Operation("element", own, None, None, (), reads, settings)


def _read_expand(watcher: OperationWatcher, name: str, args: Any, kwargs: Any) -> Operation | None:
    own = watcher.name_of(args[0]) if args and not kwargs else None
    if own is None:
        return None
    return Operation(
        "element", own, None, None, (), None, {"shape": tuple(args[0].shape), "sign": 1}
    )


_NORMS: Final[Mapping[str, tuple[Callable[..., Tensor], tuple[int, int]]]] = {
    "layer_norm": (F.layer_norm, (2, 3)),
    "rms_norm": (F.rms_norm, (2, 0)),
    "group_norm": (F.group_norm, (2, 3)),
    "batch_norm": (F.batch_norm, (3, 4)),
    "instance_norm": (F.instance_norm, (3, 4)),
}
_OWNERS: Final[Mapping[str, Callable[..., Tensor]]] = {
    **{name: function for name, (function, _) in _NORMS.items()},
    "embedding": F.embedding,
}
"""Functions whose names others have too, with other arguments."""
_READERS: Final[Mapping[str, Callable[..., Operation | None]]] = {
    "linear": _read_linear,
    "addmm": _read_addmm,
    **dict.fromkeys(("matmul", "__matmul__", "mm"), _read_matmul),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _read_conv),
    "embedding": _read_embedding,
    **dict.fromkeys(_NORMS, _read_norm),
    **dict.fromkeys(
        (
            "add",
            "__add__",
            "__radd__",
            "__iadd__",
            "add_",
            "sub",
            "__sub__",
            "__rsub__",
            "__isub__",
        ),
        _read_element,
    ),
    **dict.fromkeys(("mul", "__mul__", "__rmul__", "__imul__", "mul_", "multiply"), _read_element),
    "expand": _read_expand,
}
