"""How dependence on the input passes through each operation, and what each weight reads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

from latewood.core.coupling.traced_call import argument_names, tensors_in
from latewood.slim.dependence import DependenceRule, Fold, Operation

__all__ = ["RULES"]

_GATES: Final = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
_CANDIDATE: Final = {"lstm": 2, "gru": 2, "rnn_tanh": 0, "rnn_relu": 0}
"""The gate whose value is written into the unit: zero for ever where it is zero."""
_CONVOLUTION_OPTIONS: Final = ("stride", "padding", "output_padding", "dilation", "groups")
_NORM_VECTORS: Final = ("running_mean", "running_var", "weight", "bias")


def _elementwise(operation: Operation) -> Tensor | None:
    mask = None
    for operand in (*operation.positional, *operation.named.values()):
        if isinstance(operand, Tensor):
            dependent = operation.state.of(operand).expand(operation.output.shape)
            mask = dependent if mask is None else mask | dependent
    return mask


def _product(operation: Operation) -> Tensor | None:
    """A known zero is one whatever it is multiplied with."""
    left, right = operation.positional[:2]
    if not isinstance(left, Tensor) or not isinstance(right, Tensor) or operation.output is left:
        # In place, the factor that was there is gone.
        return _elementwise(operation)
    state, shape = operation.state, operation.output.shape
    first = state.of(left).expand(shape) & state.matters(right).expand(shape)
    second = state.of(right).expand(shape) & state.matters(left).expand(shape)
    return first | second


def _same_entries(operation: Operation) -> Tensor:
    """For what changes the type of its first argument only."""
    return operation.state.of(operation.positional[0])


def _dropout(operation: Operation) -> Tensor | None:
    inputs = operation.argument(0, "input")
    mask = operation.state.of(inputs)
    if operation.output is inputs:
        return None if operation.argument(2, "training", True) else mask
    # A function's dropout is on by default; then only zeros stay what they are.
    changed: Tensor = operation.output != inputs
    return mask | changed


def _on_mask(operation: Operation) -> Any:
    """For what only adds, averages, chooses or moves: run on the mask itself."""
    if not operation.positional:
        return None
    first, *rest = operation.positional
    if not _fixed(operation, *tensors_in((rest, operation.named))):
        return None
    if any(isinstance(argument, torch.dtype) for argument in rest):
        return None
    if isinstance(first, Tensor):
        mask: Any = operation.state.of(first).to(torch.float64)
    else:
        mask = [operation.state.of(tensor).to(torch.float64) for tensor in first]
    # A mask may lie in memory in another order than the tensor that was viewed.
    function = torch.Tensor.reshape if operation.name == "view" else operation.function
    return _positive(function(mask, *rest, **operation.named))


def _pad(operation: Operation) -> Any:
    named = {name: value for name, value in operation.named.items() if name != "value"}
    mask = operation.state.of(operation.positional[0]).to(torch.float64)
    # Without the value: what is padded does not depend on the input.
    return _positive(operation.function(mask, *operation.positional[1:3], **named))


def _positive(tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return tree > 0
    return [_positive(item) for item in tree]


def _interpolate(operation: Operation) -> Any:
    mode = operation.argument(3, "mode", "nearest")
    return _on_mask(operation) if mode in ("nearest", "nearest-exact", "bilinear", "area") else None


def _linear(operation: Operation) -> Tensor | None:
    inputs, weight = operation.argument(0, "input"), operation.argument(1, "weight")
    bias = operation.argument(2, "bias")
    if not _fixed(operation, weight, bias):
        return None
    _record_reads(
        operation, inputs.movedim(-1, 0), operation.state.of(inputs).movedim(-1, 0), weight, bias
    )
    used = (weight != 0).to(torch.float64)
    mask: Tensor = operation.function(operation.state.of(inputs).to(torch.float64), used, None)
    return mask > 0.5


def _convolution(operation: Operation) -> Tensor | None:
    inputs, weight = operation.argument(0, "input"), operation.argument(1, "weight")
    bias, rest = operation.argument(2, "bias"), operation.positional[3:]
    if not _fixed(operation, weight, bias) or inputs.ndim != weight.ndim:
        return None
    mask = operation.state.of(inputs)
    transposed = "transpose" in operation.name
    if operation.argument(6, "groups", 1) == 1:
        padding = operation.argument(4, "padding", 0)
        borders = padding not in (0, "valid") and set(_listed(padding)) != {0}
        # At a border, a constant of the input adds less than inside.
        foldable = None if transposed or borders else bias
        _record_reads(operation, inputs.movedim(1, 0), mask.movedim(1, 0), weight, foldable)
    used = (weight != 0).to(torch.float64)
    named = {key: value for key, value in operation.named.items() if key in _CONVOLUTION_OPTIONS}
    reached: Tensor = operation.function(mask.to(torch.float64), used, None, *rest, **named)
    return reached > 0.5


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (tuple, list)) else (value,)


def _fixed(operation: Operation, *tensors: Tensor | None) -> bool:
    """Whether no entry of any of the tensors depends on the input."""
    state = operation.state
    return not any(bool(state.of(tensor).any()) for tensor in tensors if tensor is not None)


def _record_reads(
    operation: Operation, inputs: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None
) -> None:
    """Notes what a weight reads from inputs (channels, ...)."""
    names = operation.state.names
    if id(weight) not in names:
        return
    inputs, mask = inputs.flatten(1), mask.flatten(1)
    known = ~mask.any(1)
    zeros = known & (inputs == 0).all(1)
    fold = None
    if bias is not None and id(bias) in names:
        constant = known & (inputs == inputs[:, :1]).all(1) & inputs[:, 0].isfinite()
        fold = Fold(names[id(bias)], torch.where(constant, inputs[:, 0], math.nan))
    operation.state.reads.add(names[id(weight)], zeros, fold)


def _arguments(operation: Operation) -> dict[str, Any]:
    return argument_names(operation.function, operation.name, operation.positional, operation.named)


def _index_add(operation: Operation) -> Tensor | None:
    target, dim, index, source = operation.positional[:4]
    if operation.output is target or not _fixed(operation, index):
        return None
    mask = operation.state.of(source)
    _record_reads(operation, source.movedim(dim, 0), mask.movedim(dim, 0), index, None)
    into = operation.state.of(target).to(torch.float64)
    return into.index_add(dim, index, mask.to(torch.float64)) > 0


def _batch_norm(operation: Operation) -> Tensor | None:
    given = _arguments(operation)
    inputs, weight = given["input"], given.get("weight")
    if given.get("training", False) or given.get("running_mean") is None:
        return None
    if not _fixed(operation, *(given.get(name) for name in _NORM_VECTORS)):
        return None
    mask = operation.state.of(inputs)
    return mask if weight is None else mask & _along(weight != 0, inputs, 1)


def _group_norm(operation: Operation) -> Tensor | None:
    inputs, groups = operation.argument(0, "input"), operation.argument(1, "num_groups")
    weight = operation.argument(2, "weight")
    mask = operation.state.of(inputs).unflatten(1, (groups, -1)).flatten(2)
    shared: Tensor = mask.any(2, keepdim=True).expand(mask.shape).reshape(inputs.shape)
    return shared if weight is None else shared & _along(weight != 0, inputs, 1)


def _layer_norm(operation: Operation) -> Tensor:
    inputs, shape = operation.argument(0, "input"), operation.argument(1, "normalized_shape")
    weight = operation.argument(2, "weight")
    dims = tuple(range(-len(shape), 0))
    mask = operation.state.of(inputs).any(dims, keepdim=True).expand(inputs.shape)
    return mask if weight is None else mask & (weight != 0)


def _along(vector: Tensor, like: Tensor, dim: int) -> Tensor:
    return vector.view([-1 if axis == dim else 1 for axis in range(like.ndim)])


def _embedding(operation: Operation) -> Tensor | None:
    given = _arguments(operation)
    weight = given["weight"]
    if given.get("max_norm") is not None or not _fixed(operation, weight):
        return None
    varies: Tensor = (weight != weight[:1]).any(0)
    return varies.expand(operation.output.shape)


def _attention(operation: Operation) -> Tensor | None:
    """A mean of values: zero where all values of a channel are."""
    value = operation.argument(2, "value")
    matters = operation.state.matters(value).any(-2, keepdim=True)
    shape = operation.output.shape
    return matters.expand(shape) if matters.shape[:-2] == shape[:-2] else None


def _recurrent(operation: Operation) -> Any:
    """A unit that starts at zero and is given zero at every step stays there."""
    if not isinstance(operation.positional[3], bool):
        return None
    inputs, states, weights, has_biases, layers, _, _, bidirectional, batch_first = (
        operation.positional
    )
    directions = 2 if bidirectional else 1
    per_cell = len(weights) // (layers * directions)
    hidden = weights[1].shape[1]
    states = [states] if isinstance(states, Tensor) else list(states)
    if per_cell != (4 if has_biases else 2) or not _fixed(operation, *weights):
        return None
    started = torch.stack([operation.state.matters(state).any(1) for state in states]).any(0)
    entering = operation.state.matters(inputs).flatten(0, -2).any(0)
    leaving: list[Tensor] = []
    cells: list[Tensor] = []
    for number in range(layers * directions):
        cell = weights[number * per_cell : (number + 1) * per_cell]
        alive = _alive(operation.name, entering, cell, started[number])
        names = [operation.state.names.get(id(weight)) for weight in cell[:2]]
        for name, read in zip(names, (entering, alive), strict=True):
            if name is not None:
                operation.state.reads.add(name, ~read, None)
        leaving.append(alive)
        cells.append(alive)
        if len(leaving) == directions:
            entering, leaving = torch.cat(leaving), []
    last = torch.stack(cells)[:, None].expand(-1, inputs.shape[0 if batch_first else 1], hidden)
    outputs = entering.expand(*inputs.shape[:-1], -1)
    return (outputs, *[last for _ in states])


def _alive(name: str, entering: Tensor, cell: Sequence[Tensor], started: Tensor) -> Tensor:
    """Units that may ever leave zero, bool (hidden,)."""
    gates, wanted = _GATES[name], _CANDIDATE[name]
    into, back, *biases = [tensor.unflatten(0, (gates, -1))[wanted] for tensor in cell]
    alive = started | (into[:, entering] != 0).any(1)
    if biases:
        # A gate of the GRU stands between its two biases, so that each must be zero.
        alone = biases if name == "gru" else [biases[0] + biases[1]]
        alive = alive | torch.stack([bias != 0 for bias in alone]).any(0)
    while True:
        # By induction over time: nothing comes from units that are at zero until now.
        grown: Tensor = alive | (back[:, alive] != 0).any(1)
        if bool((grown == alive).all()):
            return grown
        alive = grown


_ELEMENTWISE: Final = """
    abs add celu clamp clamp_max clamp_min clone contiguous cos detach div divide elu erf
    exp expm1 gelu hardshrink hardsigmoid hardswish hardtanh iadd idiv isub
    itruediv leaky_relu log log1p logsigmoid maximum minimum mish neg pow radd rdiv
    reciprocal relu relu6 rsqrt rsub rtruediv selu sigmoid silu sin softplus softshrink softsign
    sqrt square sub subtract tanh tanhshrink true_divide truediv
""".split()  # noqa: SIM905
_ADDING: Final = """
    amax broadcast_to cat chunk concat concatenate expand expand_as flatten flip getitem mean
    moveaxis movedim narrow permute ravel repeat repeat_interleave reshape select split squeeze
    stack sum swapaxes swapdims t tile transpose unbind unflatten unsqueeze view view_as
    avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d
    adaptive_avg_pool3d max_pool1d max_pool2d max_pool3d adaptive_max_pool1d
    adaptive_max_pool2d adaptive_max_pool3d
""".split()  # noqa: SIM905

RULES: Final[dict[str, DependenceRule]] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(_ADDING, _on_mask),
    **dict.fromkeys(("to", "float", "double", "half", "bfloat16"), _same_entries),
    **dict.fromkeys(("mul", "multiply", "imul", "rmul"), _product),
    **dict.fromkeys(("dropout", "dropout1d", "dropout2d", "dropout3d"), _dropout),
    **dict.fromkeys(
        (f"conv{kind}{n}d" for kind in ("", "_transpose") for n in (1, 2, 3)), _convolution
    ),
    **dict.fromkeys(_GATES, _recurrent),
    "linear": _linear,
    "batch_norm": _batch_norm,
    "group_norm": _group_norm,
    "layer_norm": _layer_norm,
    "rms_norm": _layer_norm,
    "embedding": _embedding,
    "scaled_dot_product_attention": _attention,
    "pad": _pad,
    "interpolate": _interpolate,
    "index_add": _index_add,
}
"""Rules by the name of the operation."""
