"""How channels pass through operations that take or write positions: slices, parts, indices."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from latewood.core.coupling.data_movement_rules import move, moved, note_division
from latewood.core.coupling.labels import NONE, Parts, varies_along
from latewood.core.coupling.layer_rules import read
from latewood.core.coupling.traced_call import Call, Result, Rule

__all__ = ["POSITION_RULES"]


def _index(call: Call) -> Result:
    inputs, index = call.positional
    result = moved(call, inputs, lambda labels: labels[index])
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
    item = slice(
        *(int(x) if isinstance(x, Tensor) else x for x in (item.start, item.stop, item.step))
    )
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
        call.labels.boundaries.cut(labels, dim, [int(bound) for bound in bounds or ()])


def _take_listed(call: Call, labels: Tensor, dim: int) -> None:
    """Positions that are listed one by one, as an index does: none of them can move."""
    _take(call, labels, dim, None, (), 0)


def _select(call: Call) -> Result:
    first, rest, named = call.split_first()
    dim = rest[0] if rest else named.get("dim", 0)
    if call.labels.source(first) is None:
        _take_listed(call, call.labels.of(first), dim)
    return move(call)


def _narrow(call: Call) -> Result:
    first, dim, start, length = call.arguments("input", "dim", "start", "length")
    if call.labels.source(first) is None and isinstance(start, int):
        item = slice(start, start + length)
        _take_slice(call, first, call.labels.of(first), dim % first.ndim, item)
    return move(call)


def _chunk(call: Call) -> Result:
    first, parts, dim = call.arguments("input", "chunks", "dim")
    dim = 0 if dim is None else dim % first.ndim
    if call.labels.source(first) is None:
        if isinstance(parts, int) and first.shape[dim] % parts == 0:
            size = call.size(first, dim)
            bounds = tuple(size * number // parts for number in range(parts + 1))
            _take(call, call.labels.of(first), dim, bounds, (), int(parts))
        else:
            _take_listed(call, call.labels.of(first), dim)
    return move(call)


def _split(call: Call) -> Result:
    first, rest, named = call.split_first("tensor")
    sizes: Any = rest[0] if rest else named.get("split_size_or_sections", named.get("split_size"))
    dim = (rest[1] if len(rest) > 1 else named.get("dim", 0)) % first.ndim
    if call.labels.source(first) is None:
        total = first.shape[dim]
        even = isinstance(sizes, int)
        listed = [sizes] * (total // sizes) if even else list(sizes)
        if sum(map(int, listed)) != total:
            _take_listed(call, call.labels.of(first), dim)
            return move(call)
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
    return move(call)


def _unbind(call: Call) -> Result:
    first, rest, named = call.split_first()
    dim = rest[0] if rest else named.get("dim", 0)
    if call.labels.source(first) is None:
        _take_listed(call, call.labels.of(first), dim)
    return move(call)


def _roll(call: Call) -> Result:
    first, _, _ = call.split_first()
    dims = call.argument(2, "dims")
    labels = call.labels.of(first)
    chosen = range(labels.ndim) if dims is None else [dims] if isinstance(dims, int) else dims
    for dim in chosen:
        _take_listed(call, labels, dim)
    return move(call)


def _flip(call: Call) -> Result:
    first, rest, named = call.split_first()
    dims = rest if rest else named["dims"]
    labels = call.labels.of(first)
    for dim in dims[0] if isinstance(dims[0], (tuple, list)) else dims:
        _take_listed(call, labels, dim)
    return move(call)


def _gather(call: Call) -> Result:
    first, dim, index = call.arguments("input", "dim", "index")
    labels = call.labels.of(first)
    _take_listed(call, labels, dim)
    shape = [1 if axis == dim % first.ndim else size for axis, size in enumerate(index.shape)]
    rest = labels[tuple(slice(0, size) for size in shape)]
    return rest.expand(call.output.shape)


def _index_select(call: Call) -> Result:
    first, dim, _ = call.arguments("input", "dim", "index")
    if call.labels.source(first) is None:
        _take_listed(call, call.labels.of(first), dim)
    return move(call)


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
        entries = call.labels.of(value).expand(written.shape)
        call.labels.couple(written, entries)
        labels[index] = torch.where(written != NONE, written, entries)
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
        note_division(call, labels, sizes)


POSITION_RULES: Final[dict[str, Rule]] = {
    **dict.fromkeys(("split", "split_with_sizes"), _split),
    **dict.fromkeys(("gather", "take_along_dim"), _gather),
    "index_select": _index_select,
    "select": _select,
    "narrow": _narrow,
    "flip": _flip,
    "getitem": _index,
    "setitem": _assign,
    "copy": _copy,
    "chunk": _chunk,
    "unbind": _unbind,
    "roll": _roll,
    "index_add": _index_add,
}
"""Rules by the name of the operation."""
