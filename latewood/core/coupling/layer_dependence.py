"""How dependence on the input passes through operations with weights, and what weights read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

from latewood.core.coupling.dependence import Dependence, DependenceRule, Fold
from latewood.core.coupling.traced_call import Operation, argument_names

__all__ = ["LAYER_DEPENDENCE"]

_GATES: Final = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
_CANDIDATE: Final = {"lstm": 2, "gru": 2, "rnn_tanh": 0, "rnn_relu": 0}
"""The gate whose value is written into the unit: zero for ever where it is zero."""
_CONVOLUTION_OPTIONS: Final = ("stride", "padding", "output_padding", "dilation", "groups")
_FEW: Final = 16
"""Different rows of a mask up to which each is followed alone."""
_FIRST: Final = 64
"""Entries that are looked at before all the others."""
_NORM_VECTORS: Final = ("running_mean", "running_var", "weight", "bias")


def _linear(operation: Operation, state: Dependence) -> Tensor | None:
    inputs, weight = operation.argument(0, "input"), operation.argument(1, "weight")
    bias = operation.argument(2, "bias")
    if not state.fixed(weight, bias):
        return None
    mask = state.of(inputs)
    _record_reads(state, inputs.movedim(-1, 0), mask.movedim(-1, 0), weight, bias)
    rows = mask.reshape(math.prod(mask.shape[:-1]), mask.shape[-1])
    return _reached(weight, rows).reshape(operation.output.shape)


def _matmul(operation: Operation, state: Dependence) -> Tensor | None:
    left, right = operation.positional[:2]
    if operation.name == "rmatmul":
        left, right = right, left
    return _multiplied(operation, state, left, right)


def _added_product(operation: Operation, state: Dependence) -> Tensor | None:
    """A bias plus a product of two matrices."""
    bias, left, right = operation.arguments("input", "mat1", "mat2")
    mask = _multiplied(operation, state, left, right)
    return None if mask is None else mask | state.of(bias)


def _multiplied(
    operation: Operation, state: Dependence, left: Tensor, right: Tensor
) -> Tensor | None:
    """A product with a matrix that does not depend, which is a weight that reads its rows."""
    if right.ndim != 2 or not state.fixed(right):
        return None
    mask = state.of(left)
    state.forget_reads([left])
    _record_reads(state, left.movedim(-1, 0), mask.movedim(-1, 0), right, None)
    rows = mask.reshape(math.prod(mask.shape[:-1]), mask.shape[-1])
    return _reached(right.T, rows).reshape(operation.output.shape)


def _reached(weight: Tensor, mask: Tensor) -> Tensor:
    """Which outputs of a linear map meet a marked input through a weight other than zero.

    Args:
        weight: (out, in).
        mask: bool (rows, in).

    Returns:
        bool (rows, out).
    """
    patterns, kinds = _distinct(mask)
    if len(patterns) <= _FEW:
        met = [_any_at(weight, pattern.nonzero().flatten()) for pattern in patterns]
        return torch.stack(met)[kinds] if met else mask.new_zeros(0, len(weight))
    # Of zeros and ones, single precision never rounds a sum of some down to none.
    return mask.to(torch.float32) @ (weight != 0).to(torch.float32).T > 0.5


def _distinct(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct rows of a tensor, and for each row the number of its own."""
    if bool((rows == rows[:1]).all()):
        return rows[:1], torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
    patterns, kinds = rows.unique(dim=0, return_inverse=True)
    return patterns, kinds


def _any_at(weight: Tensor, positions: Tensor) -> Tensor:
    """Whether each row of a matrix has anything but zeros at some positions, bool (rows,)."""
    met = (weight.index_select(1, positions[:_FIRST]) != 0).any(1)
    rest = (~met).nonzero().flatten()
    if len(positions) > _FIRST and len(rest):
        # Most rows are told by their first entries.
        met[rest] = (weight[rest].index_select(1, positions[_FIRST:]) != 0).any(1)
    return met


def _convolution(operation: Operation, state: Dependence) -> Tensor | None:
    inputs, weight = operation.argument(0, "input"), operation.argument(1, "weight")
    bias, rest = operation.argument(2, "bias"), operation.positional[3:]
    if not state.fixed(weight, bias) or inputs.ndim != weight.ndim:
        return None
    mask = state.of(inputs)
    transposed = "transpose" in operation.name
    groups = operation.argument(6, "groups", 1)
    if groups == 1:
        padding = operation.argument(4, "padding", 0)
        borders = padding not in (0, "valid") and set(_listed(padding)) != {0}
        # At a border, a constant of the input adds less than inside.
        foldable = None if transposed or borders else bias
        _record_reads(state, inputs.movedim(1, 0), mask.movedim(1, 0), weight, foldable)
    named = {key: value for key, value in operation.named.items() if key in _CONVOLUTION_OPTIONS}
    kernel = weight != 0
    plane_dims = (0, *range(2, mask.ndim))
    channels = mask.any(plane_dims)
    if not bool((channels == mask.all(plane_dims)).all()):
        made: Tensor = operation.function(
            mask.to(torch.float64), kernel.to(torch.float64), None, *rest, **named
        )
        return made > 0.5
    # Planes that depend as wholes reach as far as one plane does through the taps of all of them.
    taps, kinds = _distinct(_taps(kernel, channels, groups, transposed))
    plane = torch.ones(1, 1, *mask.shape[2:], dtype=torch.float64, device=mask.device)
    one_group = [1 if place == 3 else option for place, option in enumerate(rest)]
    made = operation.function(
        plane,
        taps.unsqueeze(0 if transposed else 1).to(torch.float64),
        None,
        *one_group,
        **{name: 1 if name == "groups" else option for name, option in named.items()},
    )
    return (made > 0.5)[:, kinds].expand(operation.output.shape)


def _taps(kernel: Tensor, channels: Tensor, groups: int, transposed: bool) -> Tensor:
    """For each channel made, which places of the kernel meet any of some channels, bool (out, ...).

    Args:
        kernel: where the weight is not zero, in its shape.
        channels: of the input, bool (in,).
        groups: of the convolution.
        transposed: whether the weight's first axis is the input's.
    """
    spatial = [1] * (kernel.ndim - 2)
    by_group = kernel.unflatten(0, (groups, -1))
    if transposed:
        met: Tensor = by_group & channels.view(groups, -1, 1, *spatial)
        return met.any(1).flatten(0, 1)
    met = by_group & channels.view(groups, 1, -1, *spatial)
    return met.any(2).flatten(0, 1)


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (tuple, list)) else (value,)


def _record_reads(
    state: Dependence, inputs: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None
) -> None:
    """Notes what a weight reads from inputs (channels, ...)."""
    name, bias_name = state.name(weight), state.name(bias)
    if name is None:
        return
    inputs, mask = inputs.unsqueeze(-1).flatten(1), mask.unsqueeze(-1).flatten(1)
    if not inputs.shape[1]:
        # Such as an expert without tokens: with other inputs it reads others.
        state.reads.add(name, torch.zeros(len(inputs), dtype=torch.bool), None)
        return
    known = ~mask.any(1)
    zeros = known & (inputs == 0).all(1)
    fold = None
    if bias_name is not None:
        constant = known & (inputs == inputs[:, :1]).all(1) & inputs[:, 0].isfinite()
        fold = Fold(bias_name, torch.where(constant, inputs[:, 0], math.nan))
    state.reads.add(name, zeros, fold)


def _arguments(operation: Operation) -> dict[str, Any]:
    return argument_names(operation.function, operation.name, operation.positional, operation.named)


def _index_add(operation: Operation, state: Dependence) -> Tensor | None:
    target, dim, index, source = operation.positional[:4]
    if operation.output is target or not state.fixed(index):
        return None
    mask = state.of(source)
    _record_reads(state, source.movedim(dim, 0), mask.movedim(dim, 0), index, None)
    into = state.of(target).to(torch.float64)
    return into.index_add(dim, index, mask.to(torch.float64)) > 0


def _batch_norm(operation: Operation, state: Dependence) -> Tensor | None:
    given = _arguments(operation)
    inputs, weight = given["input"], given.get("weight")
    if given.get("training", False) or given.get("running_mean") is None:
        return None
    if not state.fixed(*(given.get(name) for name in _NORM_VECTORS)):
        return None
    mask = state.of(inputs)
    return mask if weight is None else mask & _along(weight != 0, inputs, 1)


def _group_norm(operation: Operation, state: Dependence) -> Tensor | None:
    inputs, groups = operation.argument(0, "input"), operation.argument(1, "num_groups")
    weight = operation.argument(2, "weight")
    if not state.fixed(weight, operation.argument(3, "bias")):
        return None
    mask = state.of(inputs).unflatten(1, (groups, -1)).flatten(2)
    shared: Tensor = mask.any(2, keepdim=True).expand(mask.shape).reshape(inputs.shape)
    return shared if weight is None else shared & _along(weight != 0, inputs, 1)


def _layer_norm(operation: Operation, state: Dependence) -> Tensor | None:
    inputs, shape = operation.argument(0, "input"), operation.argument(1, "normalized_shape")
    weight = operation.argument(2, "weight")
    bias = None if operation.name == "rms_norm" else operation.argument(3, "bias")
    if not state.fixed(weight, bias):
        return None
    dims = tuple(range(-len(shape), 0))
    mask = state.of(inputs).any(dims, keepdim=True).expand(inputs.shape)
    return mask if weight is None else mask & (weight != 0)


def _along(vector: Tensor, like: Tensor, dim: int) -> Tensor:
    return vector.view([-1 if axis == dim else 1 for axis in range(like.ndim)])


def _embedding(operation: Operation, state: Dependence) -> Tensor | None:
    given = _arguments(operation)
    weight = given["weight"]
    if given.get("max_norm") is not None or not state.fixed(weight):
        return None
    varies: Tensor = (weight[:_FIRST] != weight[:1]).any(0)
    rest = (~varies).nonzero().flatten()
    if len(rest):
        varies[rest] = (weight[:, rest] != weight[:1, rest]).any(0)
    return varies.expand(operation.output.shape)


def _attention(operation: Operation, state: Dependence) -> Tensor | None:
    """A mean of values: zero where all values of a channel are."""
    value = operation.argument(2, "value")
    matters = state.matters(value).any(-2, keepdim=True)
    shape = operation.output.shape
    return matters.expand(shape) if matters.shape[:-2] == shape[:-2] else None


def _multi_head_attention(operation: Operation, state: Dependence) -> Any:
    """A row of zeros in the last projection leaves its bias."""
    weight, bias = (
        operation.argument(11, "out_proj_weight"),
        operation.argument(12, "out_proj_bias"),
    )
    if not state.fixed(weight, bias):
        return None
    state.forget_reads(operation.tensors)
    return (weight != 0).any(1).expand(operation.output[0].shape), None


def _recurrent(operation: Operation, state: Dependence) -> Any:
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
    if per_cell != (4 if has_biases else 2) or not state.fixed(*weights):
        return None
    started = torch.stack([state.matters(initial).any(1) for initial in states]).any(0)
    entering = state.matters(inputs).flatten(0, -2).any(0)
    leaving: list[Tensor] = []
    cells: list[Tensor] = []
    for number in range(layers * directions):
        cell = weights[number * per_cell : (number + 1) * per_cell]
        alive = _alive(operation.name, entering, cell, started[number])
        names = [state.name(weight) for weight in cell[:2]]
        for name, read in zip(names, (entering, alive), strict=True):
            if name is not None:
                state.reads.add(name, ~read, None)
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


LAYER_DEPENDENCE: Final[dict[str, DependenceRule]] = {
    **dict.fromkeys(("matmul", "rmatmul", "mm"), _matmul),
    "linear": _linear,
    "batch_norm": _batch_norm,
    "group_norm": _group_norm,
    "layer_norm": _layer_norm,
    "rms_norm": _layer_norm,
    "embedding": _embedding,
    "scaled_dot_product_attention": _attention,
    "multi_head_attention_forward": _multi_head_attention,
    "index_add": _index_add,
    "addmm": _added_product,
    **dict.fromkeys(
        (f"conv{kind}{n}d" for kind in ("", "_transpose") for n in (1, 2, 3)), _convolution
    ),
    **dict.fromkeys(_GATES, _recurrent),
}
"""Rules by the name of the operation."""
