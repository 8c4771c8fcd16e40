"""How channels pass through operations that only move data: shapes, order, joining, indexing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from latewood.core.coupling.label_layout import compact, joined, repeated, reshaped
from latewood.core.coupling.labels import NONE, Division, Parts, WeightView, varies_along
from latewood.core.coupling.layer_rules import read
from latewood.core.coupling.traced_call import Call, Result, Rule, tensors_in

__all__ = ["MOVE_RULES"]


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


def _move(call: Call) -> Result:
    """Moves the labels as the operation moved the data."""
    first, rest, named = call.split_first()
    return _moved(call, first, lambda labels: call.function(labels, *rest, **named))


def _moved(call: Call, tensor: Tensor, move: Any) -> Result:
    """Moves a tensor's labels, or, of a weight, the places of its entries."""
    view = call.labels.view(tensor)
    if view is None:
        moved: Result = move(call.labels.of(tensor))
        return moved
    outputs = list(tensors_in(call.output))
    places = [_listed(move(positions)) for positions in view.positions]
    for number, output in enumerate(outputs):
        positions = tuple(own[number].expand(output.shape) for own in places)
        call.labels.put_view(output, WeightView(view.name, positions))
    return None


def _listed(value: Any) -> Sequence[Tensor]:
    return [value] if isinstance(value, Tensor) else list(value)


def _repeat(call: Call) -> Result:
    first, rest, _ = call.split_first()
    counts: Any = rest[0] if rest and isinstance(rest[0], (tuple, list)) else rest
    counts = counts or call.named.get("repeats", call.named.get("dims"))
    counts = [1] * (first.ndim - len(counts)) + list(counts)
    return _moved(call, first, lambda labels: repeated(labels, counts))


def _repeat_interleave(call: Call) -> Result:
    first, rest, named = call.split_first()
    labels = call.labels.of(first)
    dim = rest[1] if len(rest) > 1 else named.get("dim")
    count = rest[0] if rest else named["repeats"]
    if isinstance(dim, int) and isinstance(count, int) and labels.stride(dim) == 0:
        return labels.narrow(dim, 0, 1).expand(call.output.shape)
    return _move(call)


def _join(call: Call) -> Result:
    pieces, rest, named = call.split_first("tensors")
    dim = rest[0] if rest else named.get("dim", named.get("axis", 0))
    # Torch leaves out tensors without elements, also of other dimensions.
    pieces = [piece for piece in pieces if piece.numel()] or list(pieces[:1])
    labels = [call.labels.of(piece) for piece in pieces]
    if call.name == "stack":
        dim %= call.output.ndim
        return joined([each.unsqueeze(dim) for each in labels], dim)
    for other in labels[1:]:
        if not call.labels.vary(labels[0], dim) and not call.labels.vary(other, dim):
            call.labels.couple(labels[0].narrow(dim, 0, 1), other.narrow(dim, 0, 1))
    result = joined(labels, dim)
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
    return None if any(not isinstance(size, int) for size in sizes) else sizes


def _divided(call: Call, first: Tensor, shape: tuple[int, ...], sizes: Sequence[int]) -> Result:
    result = _moved(call, first, lambda labels: reshaped(labels, shape))
    if isinstance(result, Tensor):
        new = tuple(dim for dim in range(len(shape)) if not _was_there(first.shape, shape, dim))
        _note_division(call, result, sizes, new)
    return result


def _note_division(
    call: Call, labels: Tensor, sizes: Sequence[int], new: tuple[int, ...] = ()
) -> None:
    if any(varies_along(labels, dim) for dim in range(labels.ndim)):
        held = tuple(None if size == -1 else size for size in sizes)
        call.labels.divisions.append(Division(labels, held, new, call.where))


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
    result = _moved(call, first, lambda labels: labels.expand(call.output.shape))
    sizes = _sizes(rest, named) if call.name in ("expand", "broadcast_to") else None
    if isinstance(result, Tensor) and sizes is not None:
        _note_division(call, result, sizes)
    return result


def _index(call: Call) -> Result:
    inputs, index = call.positional
    result = _moved(call, inputs, lambda labels: labels[index])
    if isinstance(result, Tensor):
        _note_index(call, inputs, call.labels.of(inputs), index)
    return result


def _note_index(call: Call, inputs: Tensor, labels: Tensor, index: Any) -> None:
    items = index if isinstance(index, tuple) else (index,)
    used = sum(_dimensions(item) for item in items)
    dim = 0
    for item in items:
        if item is Ellipsis:
            dim += inputs.ndim - used
            continue
        for axis in range(dim, dim + _dimensions(item)):
            if isinstance(item, slice):
                _take_slice(call, inputs, labels, axis, item)
            else:
                _take_listed(call, labels, axis)
        dim += _dimensions(item)


def _dimensions(item: Any) -> int:
    """Dimensions of a tensor that one item of an index uses up."""
    if item is None or item is Ellipsis:
        return 0
    if isinstance(item, Tensor) and item.dtype in (torch.bool, torch.uint8):
        return item.ndim
    return 1


def _take_slice(call: Call, inputs: Tensor, labels: Tensor, dim: int, item: slice) -> None:
    size = call.size(inputs, dim)
    start, stop, step = item.indices(int(size))
    if (start, stop, step) == (0, size, 1):
        return
    if step != 1:
        _take_listed(call, labels, dim)
        return
    # Counted from the end, a bound moves with the size.
    bounds = [
        bound if bound is None or bound >= 0 else size + bound for bound in (item.start, item.stop)
    ]
    first, last = 0 if bounds[0] is None else bounds[0], size if bounds[1] is None else bounds[1]
    if int(last) > int(size):
        last = size
    length = stop - start
    equal = size // length if length and size % length == 0 and start % length == 0 else 0
    sections = () if bounds[0] is not None or bounds[1] is None else ((last, 0),)
    _take(call, labels, dim, (first, last), sections, int(equal))


def _take(
    call: Call,
    labels: Tensor,
    dim: int,
    bounds: tuple[int, ...] | None,
    sections: tuple[tuple[int, int], ...],
    equal: int,
) -> None:
    if varies_along(labels, dim):
        call.labels.parts.append(Parts(labels, dim, bounds, sections, equal, call.where))


def _take_listed(call: Call, labels: Tensor, dim: int) -> None:
    """Positions that are listed one by one, as an index does: none of them can move."""
    _take(call, labels, dim, None, (), 0)


def _select(call: Call) -> Result:
    first, rest, named = call.split_first()
    dim = rest[0] if rest else named.get("dim", 0)
    if call.labels.view(first) is None:
        _take_listed(call, call.labels.of(first), dim)
    return _move(call)


def _narrow(call: Call) -> Result:
    first, dim, start, length = call.arguments("input", "dim", "start", "length")
    if call.labels.view(first) is None and isinstance(start, int):
        item = slice(start, start + length)
        _take_slice(call, first, call.labels.of(first), dim % first.ndim, item)
    return _move(call)


def _chunk(call: Call) -> Result:
    first, parts, dim = call.arguments("input", "chunks", "dim")
    dim = 0 if dim is None else dim % first.ndim
    if call.labels.view(first) is None:
        if isinstance(parts, int) and first.shape[dim] % parts == 0:
            size = call.size(first, dim)
            bounds = tuple(size * number // parts for number in range(parts + 1))
            _take(call, call.labels.of(first), dim, bounds, (), int(parts))
        else:
            _take_listed(call, call.labels.of(first), dim)
    return _move(call)


def _split(call: Call) -> Result:
    first, rest, named = call.split_first("tensor")
    sizes: Any = rest[0] if rest else named.get("split_size_or_sections", named.get("split_size"))
    dim = (rest[1] if len(rest) > 1 else named.get("dim", 0)) % first.ndim
    if call.labels.view(first) is None:
        total = first.shape[dim]
        even = isinstance(sizes, int)
        listed = [sizes] * (total // sizes) if even else list(sizes)
        if sum(map(int, listed)) != total:
            _take_listed(call, call.labels.of(first), dim)
            return _move(call)
        bounds, sections, end = [], [], 0
        for size in listed:
            sections.append((size, int(end)))
            end = size + end
            bounds.append(end)
        alike = len(set(map(int, listed))) == 1
        _take(
            call,
            call.labels.of(first),
            dim,
            tuple(bounds),
            tuple(sections),
            len(listed) if alike else 0,
        )
    return _move(call)


def _unbind(call: Call) -> Result:
    first, rest, named = call.split_first()
    dim = rest[0] if rest else named.get("dim", 0)
    if call.labels.view(first) is None:
        _take_listed(call, call.labels.of(first), dim)
    return _move(call)


def _roll(call: Call) -> Result:
    first, _, _ = call.split_first()
    dims = call.argument(2, "dims")
    labels = call.labels.of(first)
    chosen = range(labels.ndim) if dims is None else [dims] if isinstance(dims, int) else dims
    for dim in chosen:
        _take_listed(call, labels, dim)
    return _move(call)


def _flip(call: Call) -> Result:
    first, rest, named = call.split_first()
    dims = rest if rest else named["dims"]
    labels = call.labels.of(first)
    for dim in dims[0] if isinstance(dims[0], (tuple, list)) else dims:
        _take_listed(call, labels, dim)
    return _move(call)


def _gather(call: Call) -> Result:
    first, dim, index = call.arguments("input", "dim", "index")
    labels = call.labels.of(first)
    _take_listed(call, labels, dim)
    shape = [1 if axis == dim % first.ndim else size for axis, size in enumerate(index.shape)]
    rest = labels[tuple(slice(0, size) for size in shape)]
    return rest.expand(call.output.shape)


def _index_select(call: Call) -> Result:
    first, dim, _ = call.arguments("input", "dim", "index")
    if call.labels.view(first) is None:
        _take_listed(call, call.labels.of(first), dim)
    return _move(call)


def _index_add(call: Call) -> Result:
    """Adds rows of the source at places that an index tells.

    Where the places are those of channels (``Scatter``), they are data and stay fixed.
    """
    target, dim, index, source = call.arguments("input", "dim", "index", "source")
    into, added = call.labels.of(target), call.labels.of(source)
    computed = call.labels.name(index) is None
    if computed and not varies_along(into, dim) and not varies_along(added, dim):
        added = added.narrow(dim, 0, 1).expand(into.shape)
        call.labels.couple(into, added)
        result = torch.where(into != NONE, into, added) if bool((into == NONE).any()) else into
        _bar_beside_allocation(call, target, result)
        return result
    call.labels.bar(into, "fixed", f"{call.where} adds channels by position")
    read(call, added.movedim(dim, -1), call.labels.axis(index, 0, "consumer"))
    return None


def _assign(call: Call) -> Result:
    """Writes into a part of a tensor, whose labels change with it."""
    target, index, value = call.positional
    labels = call.labels.of(target).clone()
    if isinstance(value, Tensor):
        written = labels[index]
        own = call.labels.of(value).expand(written.shape)
        call.labels.couple(written, own)
        labels[index] = torch.where(written != NONE, written, own)
    _note_index(call, target, labels, index)
    _bar_beside_allocation(call, target, labels)
    call.labels.put(target, labels)
    return None


def _copy(call: Call) -> Result:
    target, source = call.positional[:2]
    labels = call.labels.of(source).expand(target.shape)
    _bar_beside_allocation(call, target, labels)
    return labels


def _bar_beside_allocation(call: Call, target: Tensor, labels: Tensor) -> None:
    """A tensor that was made without data has the sizes that the code gave it."""
    sizes = call.labels.allocated.get(target)
    if sizes is not None:
        _note_division(call, labels, sizes)


_MOVES: Final = """
    get adjoint moveaxis movedim permute squeeze swapaxes swapdims t transpose unsqueeze atleast_1d
    atleast_2d atleast_3d alias diagonal
""".split()  # noqa: SIM905

MOVE_RULES: Final[dict[str, Rule]] = {
    **dict.fromkeys(_MOVES, _move),
    **dict.fromkeys(("cat", "concat", "concatenate", "stack"), _join),
    **dict.fromkeys(("view", "reshape"), _reshape),
    **dict.fromkeys(("view_as", "reshape_as"), _reshape_as),
    **dict.fromkeys(("expand", "expand_as", "broadcast_to"), _expand),
    **dict.fromkeys(("split", "split_with_sizes"), _split),
    **dict.fromkeys(("gather", "take_along_dim"), _gather),
    "view_as_complex": _complex,
    "view_as_real": _real,
    "index_select": _index_select,
    "select": _select,
    "narrow": _narrow,
    "unflatten": _unflatten,
    **dict.fromkeys(("flatten", "ravel"), _flatten),
    **dict.fromkeys(("repeat", "tile"), _repeat),
    "flip": _flip,
    "repeat_interleave": _repeat_interleave,
    "pad": _pad,
    "getitem": _index,
    "setitem": _assign,
    "copy": _copy,
    "chunk": _chunk,
    "unbind": _unbind,
    "roll": _roll,
    "index_add": _index_add,
}
"""Rules by the name of the operation."""
