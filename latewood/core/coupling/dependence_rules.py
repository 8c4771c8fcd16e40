"""How dependence on the input passes through operations, by their kind or one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

from latewood.core.coupling.dependence import Dependence, DependenceRule
from latewood.core.coupling.layer_dependence import LAYER_DEPENDENCE
from latewood.core.coupling.traced_call import Operation, tensors_in

__all__ = ["DEPENDENCE_RULES", "elementwise", "expanded", "moved", "reshaped"]


def elementwise(operation: Operation, state: Dependence) -> Tensor | None:
    """For what makes each entry of the entries at the same place."""
    output = operation.output
    if not isinstance(output, Tensor):
        return None
    mask = None
    for operand in (*operation.positional, *operation.named.values()):
        if isinstance(operand, Tensor):
            if not _broadcasts(operand.shape, output.shape):
                return None
            dependent = state.of(operand).expand(output.shape)
            if state.all_depends(operand):
                return dependent
            mask = dependent if mask is None else mask | dependent
    return mask


def _broadcasts(shape: Sequence[int], to: Sequence[int]) -> bool:
    return len(shape) <= len(to) and all(
        size in (1, wanted) for size, wanted in zip(reversed(shape), reversed(to), strict=False)
    )


def moved(operation: Operation, state: Dependence) -> Any:
    """For what only moves data: done to the mask itself."""
    if not operation.positional:
        return None
    first, *rest = operation.positional
    if any(isinstance(argument, torch.dtype) for argument in rest):
        return None
    if not state.fixed(*tensors_in((rest, operation.named))):
        return _zeros_alone(operation, state)
    if not isinstance(first, Tensor):
        masks: Any = [state.of(tensor) for tensor in first]
    elif first.is_complex():
        # Its parts have no counterpart in a mask.
        return None
    else:
        # What is done in place is done to another tensor over the same memory.
        masks = state.of(first).detach()
    return operation.function(masks, *rest, **operation.named)


def _zeros_alone(operation: Operation, state: Dependence) -> Tensor | None:
    """Places that the input chooses hold zeros where all places do."""
    first, output = operation.positional[0], operation.output
    if not isinstance(first, Tensor) or not isinstance(output, Tensor):
        return None
    if bool(state.matters(first).any()):
        return None
    return torch.zeros_like(output, dtype=torch.bool)


def reshaped(operation: Operation, state: Dependence) -> Tensor | None:
    """For other shapes of the same entries in the same order."""
    first, output = operation.argument(0, "input"), operation.output
    if not isinstance(first, Tensor) or not isinstance(output, Tensor):
        return None
    if first.numel() != output.numel() or first.dtype != output.dtype:
        return None
    return state.of(first).reshape(output.shape)


def expanded(operation: Operation, state: Dependence) -> Tensor | None:
    """For what repeats entries along dimensions of size one."""
    first, output = operation.argument(0, "input"), operation.output
    return state.of(first).expand(output.shape) if isinstance(output, Tensor) else None


def _same_entries(operation: Operation, state: Dependence) -> Tensor | None:
    """For what changes the type or the place of its first argument only."""
    first = operation.argument(0, "input")
    return state.of(first) if isinstance(first, Tensor) else None


def _added(operation: Operation, state: Dependence) -> Any:
    """For what adds, averages or chooses the largest: run on the mask itself."""
    if not operation.positional or not isinstance(operation.positional[0], Tensor):
        return None
    first, *rest = operation.positional
    if not state.fixed(*tensors_in((rest, operation.named))):
        return None
    mask = state.of(first).to(torch.float64)
    return _positive(operation.function(mask, *rest, **operation.named))


def _product(operation: Operation, state: Dependence) -> Tensor | None:
    """A known zero is one whatever it is multiplied with."""
    left, right = operation.positional[:2]
    if not isinstance(left, Tensor) or not isinstance(right, Tensor) or operation.output is left:
        # In place, the factor that was there is gone.
        return elementwise(operation, state)
    shape = operation.output.shape
    first = state.of(left).expand(shape) & state.matters(right).expand(shape)
    second = state.of(right).expand(shape) & state.matters(left).expand(shape)
    return first | second


def _dropout(operation: Operation, state: Dependence) -> Tensor | None:
    inputs = operation.argument(0, "input")
    mask = state.of(inputs)
    if operation.output is inputs:
        return None if operation.argument(2, "training", True) else mask
    # A function's dropout is on by default; then only zeros stay what they are.
    changed: Tensor = operation.output != inputs
    return mask | changed


def _pad(operation: Operation, state: Dependence) -> Any:
    named = {name: value for name, value in operation.named.items() if name != "value"}
    mask = state.of(operation.positional[0]).to(torch.float64)
    # Without the value: what is padded does not depend on the input.
    return _positive(operation.function(mask, *operation.positional[1:3], **named))


def _positive(tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return tree > 0
    return [_positive(item) for item in tree]


def _interpolate(operation: Operation, state: Dependence) -> Any:
    mode = operation.argument(3, "mode", "nearest")
    is_mean = mode in ("nearest", "nearest-exact", "bilinear", "area")
    return _added(operation, state) if is_mean else None


_CASTS: Final = """
    as_tensor to type type_as float double half bfloat16 bool int long cpu cuda contiguous clone
    detach
""".split()  # noqa: SIM905

DEPENDENCE_RULES: Final[dict[str, DependenceRule]] = {
    **dict.fromkeys(_CASTS, _same_entries),
    **dict.fromkeys(("amax", "mean", "sum"), _added),
    **dict.fromkeys(
        (
            f"{adaptive}{kind}_pool{n}d"
            for adaptive in ("", "adaptive_")
            for kind in ("avg", "max")
            for n in (1, 2, 3)
        ),
        _added,
    ),
    **dict.fromkeys(("mul", "multiply", "imul", "rmul"), _product),
    **dict.fromkeys(("dropout", "dropout1d", "dropout2d", "dropout3d"), _dropout),
    **LAYER_DEPENDENCE,
    "pad": _pad,
    "interpolate": _interpolate,
}
"""Rules of operations whose kind does not tell, by their names."""
