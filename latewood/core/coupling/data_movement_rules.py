"""How channels pass through operations that only move data: shapes, order, joining, indexing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch.nn.functional as F
from torch import Tensor

from latewood.core.coupling.code_numbers import origins
from latewood.core.coupling.label_layout import compact, joined, repeated, reshaped
from latewood.core.coupling.labels import NONE, Division, WeightView, varies_along
from latewood.core.coupling.traced_call import Call, Result, Rule, tensors_in

__all__ = ["MOVE_RULES", "move", "moved", "note_division"]


def _pad(call: Call) -> Result:
    inputs, amounts = call.arguments("input", "pad")
    labels = call.labels.of(inputs)
    # Pairs of amounts come from the last dimension backwards.
    for last, (before, after) in enumerate(zip(amounts[::2], amounts[1::2], strict=True), start=1):
        moved = labels.movedim(-last, -1)
        if call.labels.vary(moved, -1):
            moved = F.pad(moved, (before, after), value=NONE)
        else:
            size = moved.shape[-1] + before + after
            moved = moved[..., :1].expand(*moved.shape[:-1], size)
        labels = moved.movedim(-1, -last)
    return labels


def move(call: Call) -> Result:
    """Moves the labels as the operation moved the data."""
    first, rest, named = call.split_first()
    return moved(call, first, lambda labels: call.function(labels, *rest, **named))


def moved(call: Call, tensor: Tensor, movement: Callable[[Tensor], Any]) -> Result:
    """Moves a tensor's labels, or, of a weight, the places of its entries.

    Args:
        call: the operation.
        tensor: whose data it moved.
        movement: does to labels, or to places, what the operation did to the data.
    """
    view = call.labels.view(tensor)
    if view is None:
        result: Result = movement(call.labels.of(tensor))
        return result
    outputs = list(tensors_in(call.output))
    places = [_listed(movement(positions)) for positions in view.positions]
    for number, output in enumerate(outputs):
        positions = tuple(of_axis[number].expand(output.shape) for of_axis in places)
        call.labels.put_view(output, WeightView(view.name, positions))
    return None


def _listed(value: Any) -> Sequence[Tensor]:
    return [value] if isinstance(value, Tensor) else list(value)


def _repeat(call: Call) -> Result:
    first, rest, _ = call.split_first()
    counts: Any = rest[0] if rest and isinstance(rest[0], (tuple, list)) else rest
    counts = counts or call.named.get("repeats", call.named.get("dims"))
    counts = [1] * (first.ndim - len(counts)) + list(counts)
    _unclear(call, call.labels.of(first))
    return moved(call, first, lambda labels: repeated(labels, counts))


def _unclear(call: Call, labels: Tensor) -> None:
    """Whether positions of one channel stay neighbours is left open."""
    for dim, size in enumerate(labels.shape):
        if varies_along(labels, dim):
            call.labels.boundaries.unclear(labels, dim, range(size))


def _repeat_interleave(call: Call) -> Result:
    first, rest, named = call.split_first()
    labels = call.labels.of(first)
    dim = rest[1] if len(rest) > 1 else named.get("dim")
    count = rest[0] if rest else named["repeats"]
    if isinstance(dim, int) and isinstance(count, int) and labels.stride(dim) == 0:
        return labels.narrow(dim, 0, 1).expand(call.output.shape)
    return move(call)


def _join(call: Call) -> Result:
    pieces, rest, named = call.split_first("tensors")
    dim = rest[0] if rest else named.get("dim", named.get("axis", 0))
    # Torch leaves out tensors without elements, also of other dimensions.
    pieces = [piece for piece in pieces if piece.numel()] or list(pieces[:1])
    labels = [call.labels.of(piece) for piece in pieces]
    if call.name == "stack":
        dim %= call.output.ndim
        stacked = joined([piece.unsqueeze(dim) for piece in labels], dim)
        _unclear(call, stacked)
        return stacked
    for other in labels[1:]:
        if not call.labels.vary(labels[0], dim) and not call.labels.vary(other, dim):
            call.labels.couple(labels[0].narrow(dim, 0, 1), other.narrow(dim, 0, 1))
    result = joined(labels, dim)
    ends = itertools.accumulate(piece.shape[dim] for piece in labels)
    call.labels.boundaries.cut(result, dim, list(ends)[:-1])
    for axis in range(result.ndim):
        # Pieces of data beside pieces of channels: along other dimensions both have one size.
        if axis != dim % result.ndim and varies_along(result, axis):
            _bar_beside_data(call, result, axis)
    return result


def _bar_beside_data(call: Call, labels: Tensor, axis: int) -> None:
    rows = compact(labels).movedim(axis, 0).flatten(1)
    absent = (rows == NONE).any(1) & (rows != NONE).any(1)
    if bool(absent.any()):
        call.labels.bar(rows[absent], "fixed", f"{call.where} meets data of fixed size")


def _reshape(call: Call) -> Result:
    first, rest, named = call.split_first()
    sizes = _sizes(rest, named)
    if sizes is None:
        return call.labels.of(first)
    return _divided(call, first, tuple(call.output.shape), sizes)


def _sizes(rest: tuple[Any, ...], named: dict[str, Any]) -> list[int] | None:
    """The sizes that the code gives; None if it gives a type instead."""
    given: Any = rest or (named.get("shape", named.get("size")),)
    sizes = list(given[0] if isinstance(given[0], (tuple, list)) else given)
    if any(not isinstance(size, (int, Tensor)) for size in sizes):
        return None
    return [size if isinstance(size, int) else int(size) for size in sizes]


def _divided(call: Call, first: Tensor, shape: tuple[int, ...], sizes: Sequence[int]) -> Result:
    result = moved(call, first, lambda labels: reshaped(labels, shape))
    if isinstance(result, Tensor):
        new = tuple(dim for dim in range(len(shape)) if not _was_there(first.shape, shape, dim))
        note_division(call, result, sizes, new)
    return result


def note_division(
    call: Call, labels: Tensor, sizes: Sequence[int], new: tuple[int, ...] = ()
) -> None:
    """Notes that the code gave a tensor sizes, which must follow its channels.

    Args:
        call: the operation.
        labels: in the tensor's shape.
        sizes: the code's number for each dimension; -1 where it leaves the size open.
        new: dimensions that were not there before.
    """
    varies = any(varies_along(labels, dim) for dim in range(labels.ndim))
    # Data without channels does not follow either, where the code counts some for its shape.
    if varies or any(next(origins(size), None) is not None for size in sizes):
        code_sizes = tuple(None if size == -1 else size for size in sizes)
        call.labels.divisions.append(Division(labels, code_sizes, new, call.where))
        _note_blocks(call, labels, code_sizes, new)


def _note_blocks(
    call: Call, labels: Tensor, code_sizes: tuple[int | None, ...], new: tuple[int, ...]
) -> None:
    """A dimension of size 1 that the code made is where channels are: blocks are in front of it."""
    moving = [dim for dim in range(labels.ndim) if varies_along(labels, dim)]
    single = [dim for dim in new if labels.shape[dim] == 1]
    if single and code_sizes[single[-1]] is not None:
        # One head, say, of which the labels do not show that the number would have to follow.
        _unclear(call, labels)
    elif single:
        flat = labels[tuple(slice(None) if dim in moving else 0 for dim in range(labels.ndim))]
        for number, dim in enumerate(moving):
            if dim < single[-1]:
                step = math.prod(flat.shape[number + 1 :])
                call.labels.boundaries.cut(flat.flatten(), 0, range(0, flat.numel(), step))
    elif len(moving) > 1:
        call.labels.boundaries.unclear(labels, moving[0], range(labels.shape[moving[0]]))


def _was_there(before: Sequence[int], after: Sequence[int], dim: int) -> bool:
    """Whether a dimension is one of the input's, with as many elements in front of it."""
    front = math.prod(after[:dim])
    return any(
        before[old] == after[dim] and math.prod(before[:old]) == front for old in range(len(before))
    )


def _complex(call: Call) -> Result:
    """A pair along the last dimension becomes a number."""
    inputs, *_ = call.split_first()
    labels = call.labels.of(inputs)
    call.labels.must_not_vary(labels, -1, "mixed", f"{call.where} makes numbers of pairs")
    return labels[..., 0]


def _real(call: Call) -> Result:
    inputs, *_ = call.split_first()
    return call.labels.of(inputs).unsqueeze(-1).expand(call.output.shape)


def _unflatten(call: Call) -> Result:
    first, rest, named = call.split_first()
    dim = (rest[0] if rest else named["dim"]) % first.ndim
    given = rest[1] if len(rest) > 1 else named["sizes"]
    sizes = [-1] * dim + list(given) + [-1] * (first.ndim - dim - 1)
    return _divided(call, first, tuple(call.output.shape), sizes)


def _reshape_as(call: Call) -> Result:
    first, other = call.positional
    sizes = [call.size(other, dim) for dim in range(other.ndim)]
    return _divided(call, first, tuple(call.output.shape), sizes)


def _flatten(call: Call) -> Result:
    first, *_ = call.split_first()
    shape = tuple(call.output.shape)
    return _divided(call, first, shape, [-1] * len(shape))


def _expand(call: Call) -> Result:
    first, rest, named = call.split_first()
    result = moved(call, first, lambda labels: labels.expand(call.output.shape))
    sizes = _sizes(rest, named) if call.name in ("expand", "broadcast_to") else None
    # What has no channels is as wide as the code says once it is repeated.
    if isinstance(result, Tensor) and sizes is not None and bool((compact(result) != NONE).any()):
        note_division(call, result, sizes)
    return result


_MOVES: Final = """
    get adjoint moveaxis movedim permute squeeze swapaxes swapdims t transpose unsqueeze atleast_1d
    atleast_2d atleast_3d alias diagonal
""".split()  # noqa: SIM905

MOVE_RULES: Final[dict[str, Rule]] = {
    **dict.fromkeys(_MOVES, move),
    **dict.fromkeys(("cat", "concat", "concatenate", "stack"), _join),
    **dict.fromkeys(("view", "reshape"), _reshape),
    **dict.fromkeys(("view_as", "reshape_as"), _reshape_as),
    **dict.fromkeys(("expand", "expand_as", "broadcast_to"), _expand),
    "view_as_complex": _complex,
    "view_as_real": _real,
    "unflatten": _unflatten,
    **dict.fromkeys(("flatten", "ravel"), _flatten),
    **dict.fromkeys(("repeat", "tile"), _repeat),
    "repeat_interleave": _repeat_interleave,
    "pad": _pad,
}
"""Rules by the name of the operation."""
