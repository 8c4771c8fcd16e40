"""Magnitude pruning: the smallest weights go, over all layers together or in each layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

import torch
from torch import Tensor

from latewood.errors import invalid
from latewood.sparsity.fixed import Masks, require_masks

__all__ = ["keep_largest", "prune_smallest"]


def prune_smallest(
    weights: Mapping[str, Tensor],
    *,
    fraction: float,
    present: Mapping[str, Tensor] | None = None,
    layerwise: bool = False,
) -> Masks:
    """Removes exactly ceil(fraction * n) of the n weights still present, the smallest by |w|.

    One round of iterative magnitude pruning: with the last round's masks as ``present`` the masks
    are nested. Of equal magnitudes the first is removed, by parameter name, then by position: the
    order of the layers does not matter.

    Args:
        weights: parameter name -> weight, any shapes.
        fraction: of what is present, in [0, 1]; read as the decimal number it prints as, so that
            0.07 of 100 weights is 7.
        present: masks of what is left so far; None is everything.
        layerwise: remove the fraction (rounded up) in each layer instead of over all together.

    Returns:
        Parameter name -> bool mask of the weight's shape, True where kept, in the weights' order.

    Raises:
        RequestError: a fraction out of range, no weights, or masks that do not fit.

    Source: Frankle and Carbin, The Lottery Ticket Hypothesis, ICLR 2019 (arXiv 1803.03635).
    """
    if not 0.0 <= fraction <= 1.0:
        raise invalid("fraction", fraction, "a number in [0, 1]")
    alive = _present(weights, present)
    if not layerwise:
        kept = _kept(sum(int(mask.sum()) for mask in alive.values()), fraction)
        return keep_largest(weights, kept, present=alive)
    masks: Masks = {}
    for name, weight in weights.items():
        kept = _kept(int(alive[name].sum()), fraction)
        masks |= keep_largest({name: weight}, kept, present={name: alive[name]})
    return masks


def keep_largest(
    weights: Mapping[str, Tensor], count: int, *, present: Mapping[str, Tensor] | None = None
) -> Masks:
    """Keeps exactly ``count`` weights over all layers together, the largest by |w|.

    Applied once to trained weights it is one-shot magnitude pruning. Ties are as in
    ``prune_smallest``. A layer may lose all its weights.

    Args:
        weights: parameter name -> weight, any shapes.
        count: how many stay, 0 to the number present.
        present: masks of what may stay; None is everything.

    Returns:
        Parameter name -> bool mask of the weight's shape, True where kept, in the weights' order.

    Raises:
        RequestError: a count out of range, no weights, or masks that do not fit.
    """
    alive = _present(weights, present)
    total = sum(int(mask.sum()) for mask in alive.values())
    if not 0 <= count <= total:
        raise invalid("count", count, f"0 to {total}, the number of weights present")
    names = sorted(weights)
    # Below every magnitude, so that what is gone already is never chosen before what is not.
    ranked = [
        weights[name].detach().abs().masked_fill(~alive[name], -1.0).flatten().cpu()
        for name in names
    ]
    order = torch.argsort(torch.cat(ranked).nan_to_num(nan=math.inf), stable=True)
    flat = torch.zeros(len(order), dtype=torch.bool)
    flat[order[len(order) - count :]] = True
    parts = dict(zip(names, flat.split([len(each) for each in ranked]), strict=True))
    return {
        name: parts[name].view(weight.shape).to(weight.device) for name, weight in weights.items()
    }


def _kept(present: int, fraction: float) -> int:
    # 0.07 * 100 is a little more than 7 in binary, and would be rounded up to 8.
    return present - math.ceil(Fraction(repr(float(fraction))) * present)


def _present(weights: Mapping[str, Tensor], present: Mapping[str, Tensor] | None) -> Masks:
    if not weights:
        raise invalid("weights", "none", "at least one weight")
    if present is None:
        return {name: torch.ones_like(each, dtype=torch.bool) for name, each in weights.items()}
    if present.keys() != weights.keys():
        raise invalid("present", sorted(present), f"masks of {sorted(weights)}")
    require_masks(present, weights)
    return {name: mask.to(weights[name].device) for name, mask in present.items()}
