"""From a weight under its transformations to a plain one on its grid, with its format beside it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from latewood.core import MASK, Selected, bake, detach, transformations
from latewood.core.transforms import require_bakeable
from latewood.errors import RequestError
from latewood.precision.formats import leave_weight_format
from latewood.precision.weight_precision import WeightPrecision

__all__ = [
    "finish_weight",
    "mask_factor",
    "require_early_masks",
    "require_finishable",
    "squares_of",
]


def finish_weight(uses: Sequence[Selected], precision: WeightPrecision) -> None:
    """Bakes a snapped format into its weight and leaves it on every layer that uses the weight.

    Args:
        uses: of the weight, with the precision on each.
        precision: snapped.

    Raises:
        RequestError: a mask around it that is not binary, or a foreign transformation inside it.
    """
    first, *others = uses
    factors = [mask_factor(use) for use in uses]
    precision.eval()
    bits = precision.expanded(precision.bits)
    bake(first.module, first.parameter_name, precision)
    for use in others:
        detach(use.module, use.parameter_name, precision)
    for use, factor in zip(uses, factors, strict=True):
        leave_weight_format(
            use.module, bits, precision.scale * factor, parameter_name=use.parameter_name
        )


def require_finishable(uses: Sequence[Selected], precision: WeightPrecision) -> None:
    """Refuses what ``finish_weight`` cannot do, before anything is changed."""
    for use in uses:
        require_bakeable(use.module, use.parameter_name, precision)
        mask_factor(use)


def mask_factor(use: Selected) -> float:
    """The one number by which the masks around a format multiply what they keep.

    It joins the format's scale: a soft or uneven mask would leave the grid.

    Args:
        use: a weight in a layer.

    Raises:
        RequestError: the masks multiply by several numbers.
    """
    masks = _masks(use)
    if not masks:
        return 1.0
    ones = torch.ones_like(use.stored)
    with torch.no_grad():
        for mask in masks:
            ones = mask(ones)
    kept = ones[ones != 0].double()
    if not len(kept):
        return 1.0
    if float(kept.max() - kept.min()) > 1e-6 * abs(float(kept.max())):
        names = ", ".join(type(mask).__name__ for mask in masks)
        raise RequestError(
            f"model: {use.name} has a {names} that is not binary where its number format is fixed; "
            "expected masks that are hard before LearnedPrecision snaps (harden_at below snap_at)"
        )
    return float(kept.mean())


def require_early_masks(uses: Sequence[Selected], snap_step: int) -> None:
    """Refuses masks whose schedule fixes them only after the format is fixed.

    Args:
        uses: of a weight.
        snap_step: steps after which its format is.

    Raises:
        RequestError: there is one.
    """
    for use in uses:
        for mask in _masks(use):
            fixed_from = getattr(mask, "fixed_from", None)
            if fixed_from is not None and fixed_from >= snap_step:
                raise RequestError(
                    f"model: the {type(mask).__name__} on {use.name} becomes hard after step "
                    f"{fixed_from}, and LearnedPrecision fixes the format under it after step "
                    f"{snap_step}; expected masks first: a smaller harden_at or a larger snap_at"
                )


def squares_of(precision: WeightPrecision, stored: Tensor) -> Tensor:
    """Mean square of the weights of each s on the grid's scale, of the shape of s."""
    normal = stored.detach().to(precision.scale.dtype) / precision.scale
    return precision.reduced(normal.square()) / max(
        precision.weights // max(precision.bits.numel(), 1), 1
    )


def _masks(use: Selected) -> list[torch.nn.Module]:
    attached = transformations(use.module, use.parameter_name)
    return [other for other in attached if getattr(other, "order", None) == MASK]
