"""Which weights a sparsity method masks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.nn.utils.weight_norm import WeightNorm

from latewood.core import MASK, Selected, select_parameters, transformations
from latewood.errors import RequestError, invalid

__all__ = ["maskable"]


def maskable(
    model: nn.Module, include: Sequence[str] = ("*",), exclude: Sequence[str] | None = None
) -> list[Selected]:
    """The weight matrices to mask, in the model's order, each checked to be free for a mask.

    Args:
        model: any module.
        include: patterns on layer or parameter names (``core.select_parameters``).
        exclude: patterns of the same form. None leaves the last layer out, unless ``include`` is
            given or the model has one layer only; () excludes nothing.

    Returns:
        The selected weights, a tied one once.

    Raises:
        RequestError: a pattern that matches nothing, a weight that already has a mask or a foreign
            parametrization, or that has no data or no real dtype.
    """
    chosen = _select(model, include, exclude)
    for weight in chosen:
        _require_maskable(weight)
    # Weights without elements have nothing to prune, and no density.
    return [weight for weight in chosen if weight.stored.numel() > 0] or chosen


def _select(
    model: nn.Module, include: Sequence[str], exclude: Sequence[str] | None
) -> list[Selected]:
    chosen = select_parameters(model, include=include, exclude=exclude or ())
    if exclude is not None or tuple(include) != ("*",):
        return chosen
    last = chosen[-1].module
    return [weight for weight in chosen if weight.module is not last] or chosen


def _require_maskable(selected: Selected) -> None:
    for hook in selected.module._forward_pre_hooks.values():
        # A mask on a factor could make a row of the direction 0, which its norm then divides.
        if isinstance(hook, WeightNorm) and selected.parameter_name.startswith(f"{hook.name}_"):
            raise RequestError(
                f"model: {selected.name} is a factor of torch.nn.utils.weight_norm, which a mask "
                "would not prune; remove_weight_norm first or exclude this parameter"
            )
    for transformation in transformations(selected.module, selected.parameter_name):
        order = getattr(transformation, "order", None)
        if order == MASK:
            raise RequestError(f"model: {selected.name} already has a mask; finalize it first")
        if order is None:
            raise RequestError(
                f"model: {selected.name} has the parametrization {type(transformation).__name__}, "
                "through which a mask cannot be folded; remove it or exclude this parameter"
            )
    weight = selected.stored
    if not weight.is_floating_point():
        raise invalid("model", f"{selected.name} of {weight.dtype}", "weights of a real dtype")
    if weight.is_meta:
        raise invalid("model", f"{selected.name} on the meta device", "weights that hold data")
