"""How channels pass through operations without weights: elementwise, reductions, data movement."""

from __future__ import annotations

import math
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from latewood.core.coupling.labels import NONE
from latewood.core.coupling.layer_rules import read
from latewood.core.coupling.traced_call import Call, Result, Rule, tensors_in

__all__ = ["MOVE_RULES"]


def _elementwise(call: Call) -> Result:
    tensors = [each for each in tensors_in((call.positional, call.named)) if each.ndim > 0]
    labels = torch.broadcast_tensors(*(call.labels.of(tensor) for tensor in tensors))
    for tensor, own in zip(tensors, labels, strict=True):
        absent = own == NONE
        if not bool(absent.any()):
            continue
        for other in labels:
            if other is not own and any(
                tensor.shape[dim] > 1 and call.labels.vary(other, dim)
                for dim in range(-tensor.ndim, 0)
            ):
                reason = f"{call.where} meets data of fixed size"
                call.labels.bar(other[absent], "fixed", reason)
    result: Tensor = labels[0]
    for other in labels[1:]:
        call.labels.couple(result, other)
        if bool((result == NONE).any()):
            result = torch.where(result != NONE, result, other)
    return result


def _along_one(call: Call) -> Result:
    """Softmax and its kin: one output an element, each from all along one dimension."""
    labels = call.labels.of(call.positional[0])
    dim = call.argument(1, "dim")
    if not isinstance(dim, int):
        return call.unknown()
    call.labels.must_not_vary(labels, dim, "mixed", f"{call.where} compares channels")
    return labels


def _reduce(call: Call) -> Result:
    dim = call.argument(1, "dim", call.named.get("axis"))
    if isinstance(dim, Tensor):
        return _elementwise(call)
    inputs = call.positional[0]
    labels = call.labels.of(inputs)
    dims = range(inputs.ndim) if dim is None else [dim] if isinstance(dim, int) else dim
    dims = sorted({each % inputs.ndim for each in dims})
    output = next(tensors_in(call.output))
    for each in dims:
        labels = _merged(call, labels, each, "reduces over channels")
    if output.ndim < inputs.ndim:
        labels = labels.squeeze(tuple(dims))
    return labels if isinstance(call.output, Tensor) else tuple(labels for _ in call.output)


def _merged(call: Call, labels: Tensor, dim: int, verb: str) -> Tensor:
    """Labels of what is left of one dimension when all along it comes together."""
    first = labels.narrow(dim, 0, 1)
    if not call.labels.vary(labels, dim):
        return first
    call.labels.must_not_vary(labels, dim, "mixed", f"{call.where} {verb}")
    return torch.full_like(first, NONE)


def _spatial(call: Call) -> Result:
    """Pooling and resizing of the dimensions behind the channels."""
    inputs = call.positional[0]
    labels = call.labels.of(inputs)
    digits = [int(letter) for letter in call.name if letter in "123"]
    spatial = digits[0] if digits else inputs.ndim - 2
    for dim in range(-spatial, 0):
        labels = _merged(call, labels, dim, "mixes channels")
    return labels if isinstance(call.output, Tensor) else (labels, labels)


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
    first, *rest = call.positional
    moved: Result = call.function(call.labels.of(first), *rest, **call.named)
    return moved


def _join(call: Call) -> Result:
    pieces, *rest = call.positional or (call.named["tensors"],)
    named = {name: value for name, value in call.named.items() if name != "tensors"}
    labels = [call.labels.of(piece) for piece in pieces]
    dim = rest[0] if rest else named.get("dim", 0)
    if call.name in ("cat", "concat", "concatenate"):
        for other in labels[1:]:
            if not call.labels.vary(labels[0], dim) and not call.labels.vary(other, dim):
                call.labels.couple(labels[0].narrow(dim, 0, 1), other.narrow(dim, 0, 1))
    joined: Tensor = call.function(labels, *rest, **named)
    return joined


def _reshape(call: Call) -> Result:
    first, *rest = call.positional
    if rest and isinstance(rest[0], torch.dtype):
        return call.labels.of(first)
    before = call.labels.of(first)
    labels: Tensor = call.function(before, *rest, **call.named)
    new = tuple(dim for dim in range(labels.ndim) if not _was_there(first, labels, dim))
    spelled = tuple(dim for dim in _spelled(call, first) if dim in new)
    sizes = {dim: count for dim in spelled if (count := call.counted_by(labels.shape[dim]))}
    reason = f"{call.where} divides channels into {tuple(labels.shape)}"
    call.labels.must_follow(labels, new, spelled, reason, sizes)
    return labels


def _spelled(call: Call, inputs: Tensor) -> list[int]:
    """Dimensions of a reshape's output whose sizes are numbers in the code."""
    if call.name == "unflatten":
        dim, sizes = call.argument(1, "dim"), call.argument(2, "sizes")
        offset = dim % inputs.ndim
    else:
        given = call.positional[1:] or (call.named.get("shape", call.named.get("size")),)
        sizes = given[0] if isinstance(given[0], (tuple, list)) else given
        offset = 0
    return [offset + position for position, size in enumerate(sizes) if size != -1]


def _was_there(before: Tensor, after: Tensor, dim: int) -> bool:
    """Whether a dimension is one of the input's, with as many elements in front of it."""
    front = math.prod(after.shape[:dim])
    return any(
        before.shape[old] == after.shape[dim] and math.prod(before.shape[:old]) == front
        for old in range(before.ndim)
    )


def _index(call: Call) -> Result:
    inputs, index = call.positional
    labels = call.labels.of(inputs)
    items = index if isinstance(index, tuple) else (index,)
    used = sum(_dimensions(item) for item in items)
    dim = 0
    for item in items:
        if item is Ellipsis:
            dim += inputs.ndim - used
            continue
        for each in range(dim, dim + _dimensions(item)):
            whole = isinstance(item, slice) and item.indices(inputs.shape[each]) == (
                0,
                inputs.shape[each],
                1,
            )
            if not whole:
                _fixed_positions(call, labels, each)
        dim += _dimensions(item)
    taken: Tensor = call.function(labels, index)
    return taken


def _dimensions(item: Any) -> int:
    """Dimensions of a tensor that one item of an index uses up."""
    if item is None or item is Ellipsis:
        return 0
    if isinstance(item, Tensor) and item.dtype in (torch.bool, torch.uint8):
        return item.ndim
    return 1


def _take(call: Call) -> Result:
    dim = call.argument(1, "dim")
    _fixed_positions(call, call.labels.of(call.positional[0]), dim)
    return _move(call)


def _chunk(call: Call) -> Result:
    inputs, parts, dim = call.arguments("input", "chunks", "dim")
    labels, dim = call.labels.of(inputs), 0 if dim is None else dim % inputs.ndim
    if not isinstance(parts, int) or inputs.shape[dim] % parts:
        _fixed_positions(call, labels, dim)
    else:
        _fixed_positions(call, labels.unflatten(dim, (parts, -1)), dim)
    return _move(call)


def _split(call: Call) -> Result:
    dim = call.argument(2, "dim", 0)
    _fixed_positions(call, call.labels.of(call.positional[0]), dim)
    return _move(call)


def _unbind(call: Call) -> Result:
    dim = call.argument(1, "dim", 0)
    _fixed_positions(call, call.labels.of(call.positional[0]), dim)
    return _move(call)


def _roll(call: Call) -> Result:
    labels = call.labels.of(call.positional[0])
    for dim in range(labels.ndim):
        _fixed_positions(call, labels, dim)
    return _move(call)


def _index_add(call: Call) -> Result:
    """The index holds a place for each channel of the source; the places themselves are fixed."""
    target, dim, index, source = call.positional[:4]
    call.labels.bar(call.labels.of(target), "fixed", f"{call.where} adds channels by position")
    read(call, call.labels.of(source).movedim(dim, -1), call.labels.axis(index, 0, "consumer"))
    return None


def _fixed_positions(call: Call, labels: Tensor, dim: int) -> None:
    call.labels.must_not_vary(labels, dim, "fixed", f"{call.where} takes channels by position")


_ELEMENTWISE: Final = """
    abs acos add addcdiv addcmul alpha_dropout asin atan atan2 bernoulli bfloat16 bool ceil celu
    clamp clamp_max clamp_min clip clone contiguous copysign cos cosh cpu cuda deg2rad detach
    div divide double dropout dropout1d dropout2d dropout3d elu empty_like eq erf erfc exp exp2
    expm1 feature_alpha_dropout fill float floor floordiv fmod frac full_like ge gelu gt half
    hardshrink hardsigmoid hardswish hardtanh heaviside hypot iadd idiv imul int ipow isfinite
    isinf isnan isub itruediv ldexp le leaky_relu lerp log log10 log1p log2 logaddexp
    logical_and logical_not logical_or logical_xor logit logsigmoid long lt masked_fill maximum
    minimum mish mod mul multiply nan_to_num ne neg negative ones_like positive pow radd
    rand_like randn_like rdiv reciprocal relu relu6 remainder requires_grad rmul round rpow
    rrelu rsqrt rsub rtruediv selu sgn sigmoid sign silu sin sinc sinh softplus softshrink
    softsign sqrt square sub subtract tan tanh tanhshrink threshold to true_divide truediv trunc
    type type_as where xlogy zeros_like
""".split()  # noqa: SIM905
_REDUCTIONS: Final = """
    all amax amin any argmax argmin count_nonzero logsumexp max mean median min nanmean nansum
    prod std sum var
""".split()  # noqa: SIM905
_MOVES: Final = """
    broadcast_to expand expand_as flatten flip moveaxis movedim permute ravel repeat
    repeat_interleave squeeze swapaxes swapdims t tile transpose unsqueeze view_as reshape_as
    get
""".split()  # noqa: SIM905
_POOLS: Final = [
    f"{adaptive}{kind}_pool{n}d"
    for adaptive in ("", "adaptive_")
    for kind in ("avg", "max")
    for n in (1, 2, 3)
] + [f"max_pool{n}d_with_indices" for n in (1, 2, 3)]

MOVE_RULES: Final[dict[str, Rule]] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(_REDUCTIONS, _reduce),
    **dict.fromkeys(_MOVES, _move),
    **dict.fromkeys(("softmax", "log_softmax", "softmin", "cumsum", "cumprod"), _along_one),
    **dict.fromkeys([*_POOLS, "interpolate", "upsample", "upsample_nearest"], _spatial),
    **dict.fromkeys(("cat", "concat", "concatenate", "stack"), _join),
    **dict.fromkeys(("view", "reshape", "unflatten"), _reshape),
    **dict.fromkeys(("select", "narrow", "index_select"), _take),
    **dict.fromkeys(("split", "split_with_sizes", "tensor_split"), _split),
    "pad": _pad,
    "getitem": _index,
    "chunk": _chunk,
    "unbind": _unbind,
    "roll": _roll,
    "index_add": _index_add,
}
"""Rules by the name of the operation."""
