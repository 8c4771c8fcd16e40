"""How channels pass through operations that compute each element alone, or reduce dimensions."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from latewood.core.coupling.code_numbers import origins
from latewood.core.coupling.data_movement_rules import note_division
from latewood.core.coupling.label_layout import compact, compact_together
from latewood.core.coupling.labels import NONE, varies_along
from latewood.core.coupling.traced_call import Call, Result, Rule, tensors_in

__all__ = ["ELEMENTWISE_NAMES", "ELEMENTWISE_RULES", "merged"]


def _elementwise(call: Call) -> Result:
    operands = list(tensors_in((call.positional, call.named)))
    # In a cast, a tensor behind the first only says which type is wanted.
    tensors = [x for x in operands[: 1 if call.name in _CASTS else None] if x.ndim > 0]
    if not tensors:
        return None
    view = _scaled_view(call, tensors)
    if view:
        return None
    shape = next(tensors_in(call.output)).shape
    labels = [call.labels.of(tensor).expand(shape) for tensor in tensors]
    if len(tensors) == 1 and tensors[0] not in call.labels.statistics:
        return labels[0]
    for tensor, its_labels in zip(tensors, labels, strict=True):
        _meet_fixed_size(call, tensor, its_labels, labels)
    _pass_statistic(call, tensors, labels)
    # Entries of a parameter that stands beside channels, such as a table of positions, are theirs.
    order = sorted(range(len(tensors)), key=lambda n: call.labels.source(tensors[n]) is not None)
    result = labels[order[0]]
    for number in order[1:]:
        bare = call.labels.source(tensors[number]) is not None
        wider = bare and _varies_more(labels[number], result)
        join = call.labels.merge if wider else call.labels.meet
        result = join(result, labels[number])
    return result


def _pass_statistic(call: Call, tensors: list[Tensor], labels: list[Tensor]) -> None:
    """Follows a mean over channels until it meets those channels again: then it is a norm's."""
    known = call.labels.statistics
    constancies = [known[tensor] for tensor in tensors if tensor in known]
    if not constancies or not isinstance(call.output, Tensor):
        return
    rest = [row for tensor, row in zip(tensors, labels, strict=True) if tensor not in known]
    channels = [row for row in rest if bool((compact(row) != NONE).any())]
    if not channels:
        known[call.output] = constancies[0]
    for constancy in constancies:
        wanted = call.labels.channels(compact(constancy.labels))
        for row in channels:
            if row.ndim == wanted.ndim and torch.equal(call.labels.channels(compact(row)), wanted):
                constancy.kind = "normalised"
                constancy.reason = f"{call.where} divides channels by a mean over them"


def _varies_more(labels: Tensor, than: Tensor) -> bool:
    return all(
        varies_along(labels, dim) or not varies_along(than, dim) for dim in range(labels.ndim)
    )


def _scaled_view(call: Call, tensors: list[Tensor]) -> bool:
    """Whether the result is a weight whose entries were only scaled or cast, still one."""
    if len(tensors) > 1 or not isinstance(call.output, Tensor):
        return False
    view = call.labels.view(tensors[0])
    if view is None or call.output.shape != tensors[0].shape or call.output.ndim < 2:
        return False
    call.labels.put_view(call.output, view)
    return True


def _meet_fixed_size(call: Call, tensor: Tensor, its_labels: Tensor, labels: list[Tensor]) -> None:
    """Bars channels that are added to entries of none, along a dimension that has both."""
    absent = compact(its_labels) == NONE
    if not bool(absent.any()):
        return
    reason = f"{call.where} meets data of fixed size"
    sizes = call.labels.allocated.get(tensor, ())
    counted = any(next(origins(size), None) is not None for size in sizes)
    for other in labels:
        if other is its_labels:
            continue
        if bool(absent.all()) and counted:
            # It was made without data, as wide as numbers say that may follow.
            given = [
                -1 if now == 1 else size for size, now in zip(sizes, tensor.shape, strict=True)
            ]
            note_division(call, other, [*[-1] * (other.ndim - tensor.ndim), *given])
        elif bool(absent.all()):
            for dim in range(-tensor.ndim, 0):
                if tensor.shape[dim] > 1:
                    call.labels.must_not_vary(other, dim, "fixed", reason)
        elif any(call.labels.vary(other, dim) for dim in range(-tensor.ndim, 0)):
            mine, theirs = compact_together(its_labels, other)
            call.labels.bar(theirs[mine == NONE], "fixed", reason)


def _none(call: Call) -> Result:
    """For what asks a tensor for its type or size only."""
    return None


def _along_one(call: Call) -> Result:
    """Softmax and its kin: one output an element, each from all along one dimension."""
    inputs, *_ = call.split_first()
    labels = call.labels.of(inputs)
    dim = call.argument(1, "dim")
    if not isinstance(dim, int):
        return call.unknown()
    call.labels.must_not_vary(labels, dim, "mixed", f"{call.where} compares channels")
    return labels


def _ordered(call: Call) -> Result:
    """Sorting and choosing along a dimension, with the values' places beside the values."""
    inputs, *_ = call.split_first()
    labels = call.labels.of(inputs)
    dim = call.argument(1 if call.name in ("sort", "argsort") else 2, "dim", -1)
    call.labels.must_not_vary(labels, dim, "mixed", f"{call.where} compares channels")
    first = labels.narrow(dim, 0, 1)
    outputs = [first.expand(output.shape) for output in tensors_in(call.output)]
    return outputs[0] if isinstance(call.output, Tensor) else outputs


def _reduce(call: Call) -> Result:
    dim = call.argument(1, "dim", call.named.get("axis"))
    if call.name in ("norm", "linalg_vector_norm", "vector_norm"):
        dim = call.argument(2, "dim")
    if isinstance(dim, Tensor):
        return _elementwise(call)
    inputs, *_ = call.split_first()
    labels = call.labels.of(inputs)
    dims = range(inputs.ndim) if dim is None else [dim] if isinstance(dim, int) else dim
    dims = sorted({axis % inputs.ndim for axis in dims})
    output = next(tensors_in(call.output))
    for axis in dims:
        labels = merged(call, labels, axis, "reduces over channels")
    if output.ndim < inputs.ndim:
        labels = labels.squeeze(tuple(dims))
    elif call.name in _MEANS and call.labels.constancies:
        for mean in tensors_in(call.output):
            call.labels.statistics[mean] = call.labels.constancies[-1]
    return labels if isinstance(call.output, Tensor) else tuple(labels for _ in call.output)


def merged(call: Call, labels: Tensor, dim: int, verb: str) -> Tensor:
    """Labels of what is left of one dimension when all along it comes together.

    Args:
        call: the operation.
        labels: before it.
        dim: the dimension, of which size 1 is left.
        verb: what the operation does, for the barrier.
    """
    first = labels.narrow(dim, 0, 1)
    if not call.labels.vary(labels, dim):
        return first
    call.labels.must_not_vary(labels, dim, "mixed", f"{call.where} {verb}")
    if any(varies_along(first, other) for other in range(first.ndim)):
        # Channels of another kind, such as heads, go on.
        return first
    return torch.full((), NONE).expand(first.shape)


def _spatial(call: Call) -> Result:
    """Pooling and resizing of the dimensions behind the channels."""
    inputs, *_ = call.split_first()
    labels = call.labels.of(inputs)
    digits = [int(letter) for letter in call.name if letter in "123"]
    spatial = digits[0] if digits else inputs.ndim - 2
    for dim in range(-spatial, 0):
        labels = merged(call, labels, dim, "mixes channels")
    return labels if isinstance(call.output, Tensor) else (labels, labels)


def _normalize(call: Call) -> Result:
    inputs, *_ = call.split_first()
    labels = call.labels.of(inputs)
    dim = call.argument(2, "dim", 1)
    call.labels.must_not_vary(
        labels, dim, "normalised", f"{call.where} divides by a norm over the channels"
    )
    return labels


def _glu(call: Call) -> Result:
    inputs, *_ = call.split_first()
    dim = call.argument(1, "dim", -1)
    call.labels.boundaries.cut(call.labels.of(inputs), dim, [inputs.shape[dim] // 2])
    halves: Tensor = (
        call.labels.of(inputs).unflatten(dim, (2, -1)).movedim(dim if dim >= 0 else dim - 1, 0)
    )
    call.labels.couple(halves[0], halves[1])
    return halves[0]


_CASTS: Final = ("to", "type", "type_as")
_MEANS: Final = ("mean", "var", "std", "var_mean", "std_mean", "norm", "linalg_vector_norm")

ELEMENTWISE_NAMES: Final = """
    abs acos add addcdiv addcmul alpha_dropout as_tensor asin atan atan2 bernoulli bfloat16
    bitwise_and bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor bool
    ceil celu clamp clamp_max clamp_min clip clone contiguous copysign cos cosh cpu cuda deg2rad
    detach div divide double dropout dropout1d dropout2d dropout3d elu empty_like eq erf erfc exp
    exp2 expm1 feature_alpha_dropout fill float float_power floor floor_divide floordiv fmod frac
    full_like ge gelu gt half hardshrink hardsigmoid hardswish hardtanh heaviside hypot iadd iand
    idiv ilshift imul int invert ior ipow irshift isfinite isinf isnan isub itruediv ixor ldexp
    le leaky_relu lerp log log10 log1p log2 logaddexp logical_and logical_not logical_or
    logical_xor logit logsigmoid long lshift lt masked_fill maximum minimum mish mod mul multiply
    nan_to_num ne neg negative ones_like or and xor positive pow radd rand_like randn_like rdiv
    reciprocal relu relu6 remainder requires_grad rlshift rmul round rpow rrelu rrshift rshift
    rsqrt rsub rtruediv selu sgn sigmoid sign silu sin sinc sinh softplus softshrink softsign
    special_expit sqrt square sub subtract tan tanh tanhshrink threshold to tril triu true_divide
    truediv trunc type type_as where xlogy zero zeros_like
""".split()  # noqa: SIM905
_REDUCTIONS: Final = """
    all amax amin aminmax any argmax argmin count_nonzero linalg_vector_norm logsumexp max mean
    median min nanmean nansum norm prod std sum var var_mean std_mean vector_norm
""".split()  # noqa: SIM905
_POOLS: Final = [
    f"{adaptive}{kind}_pool{n}d"
    for adaptive in ("", "adaptive_")
    for kind in ("avg", "max")
    for n in (1, 2, 3)
] + [f"{adaptive}max_pool{n}d_with_indices" for adaptive in ("", "adaptive_") for n in (1, 2, 3)]

_FACTS: Final = """
    arange bincount histc new_empty new_full new_ones new_tensor new_zeros
""".split()  # noqa: SIM905

ELEMENTWISE_RULES: Final[dict[str, Rule]] = {
    **dict.fromkeys(ELEMENTWISE_NAMES, _elementwise),
    **dict.fromkeys(_REDUCTIONS, _reduce),
    **dict.fromkeys(
        ("softmax", "log_softmax", "softmin", "cumsum", "cumprod", "cummax", "logcumsumexp"),
        _along_one,
    ),
    **dict.fromkeys(("topk", "sort", "argsort", "kthvalue"), _ordered),
    **dict.fromkeys(
        [*_POOLS, "interpolate", "upsample", "upsample_nearest", "lp_pool1d", "lp_pool2d"],
        _spatial,
    ),
    **dict.fromkeys(
        [
            "new_empty",
            "new_full",
            "new_ones",
            "new_tensor",
            "new_zeros",
            "histc",
            "bincount",
            "arange",
        ],
        _none,
    ),
    "normalize": _normalize,
    "glu": _glu,
}
"""Rules by the name of the operation."""
