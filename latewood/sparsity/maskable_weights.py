"""Which weights a sparsity method masks."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Final

from torch import nn
from torch.nn.utils.weight_norm import WeightNorm

from latewood.core import MASK, Selected, select_parameters, transformations
from latewood.core.selection import EMBEDDING, matrix_parameters, shared_with_embeddings
from latewood.errors import RequestError, invalid, listed

__all__ = ["maskable"]

_EVERYTHING: Final = ("*",)
_TIED: Final = "shared with an embedding, dense unless exclude=() or include names it"
_LAST: Final = "the last layer, dense unless exclude=()"


def maskable(
    model: nn.Module, include: Sequence[str] = _EVERYTHING, exclude: Sequence[str] | None = None
) -> list[Selected]:
    """The weight matrices to mask, in the model's order, each checked to be free for a mask.

    Warns where it was asked for everything and finds less than half of the entries of all matrices
    (embeddings not counted): which ones it left out, and why.

    Args:
        model: any module.
        include: patterns on layer or parameter names (``core.select_parameters``).
        exclude: patterns of the same form. None leaves out the last layer and what is shared with
            an embedding, unless ``include`` is given or nothing else is there; () excludes nothing.

    Returns:
        The selected weights, a tied one once.

    Raises:
        RequestError: a pattern that matches nothing, a weight that already has a mask or a foreign
            parametrization, or that has no data or no real dtype.
    """
    chosen = select_parameters(model, include=include, exclude=exclude or ())
    everything = tuple(include) == _EVERYTHING and not exclude
    dense = _dense_by_default(model, chosen) if everything and exclude is None else {}
    chosen = [weight for weight in chosen if weight.name not in dense] or chosen
    for weight in chosen:
        _require_maskable(weight)
    if everything:
        _warn_of_most_left_out(model, chosen, dense)
    # Weights without elements have nothing to prune, and no density.
    return [weight for weight in chosen if weight.stored.numel() > 0] or chosen


def _dense_by_default(model: nn.Module, chosen: Sequence[Selected]) -> dict[str, str]:
    """What stays dense unless it is asked for, and why, by name."""
    last = chosen[-1].module
    return {
        **dict.fromkeys((weight.name for weight in chosen if weight.module is last), _LAST),
        **dict.fromkeys(sorted(shared_with_embeddings(model)), _TIED),
    }


def _warn_of_most_left_out(
    model: nn.Module, chosen: Iterable[Selected], dense: dict[str, str]
) -> None:
    masked = {weight.name for weight in chosen}
    count = total = sum(weight.stored.numel() for weight in chosen)
    left_out: dict[str, list[str]] = {}
    for weight, no_weight in matrix_parameters(model):
        if weight.name not in masked:
            reason = no_weight or dense[weight.name]
            left_out.setdefault(reason, []).append(weight.name)
            if reason not in (EMBEDDING, _TIED):
                total += weight.tensor.numel()
    if 2 * count >= total:
        return
    reasons = "; ".join(f"{listed(names)} ({reason})" for reason, names in left_out.items())
    warnings.warn(
        f"model: only {count} of the {total} entries of its matrices are masked "
        f"({count / total:.0%}); left out: {reasons}",
        UserWarning,
        stacklevel=4,
    )


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
