"""Magnitude pruning: the smallest weights go, over all layers together or in each layer."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from latewood.core.masks import Masks, keep_largest, kept_count, present_masks

__all__ = ["prune_smallest"]


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
    alive = present_masks(weights, present)
    left = {name: int(mask.sum()) for name, mask in alive.items()}
    if not layerwise:
        total = sum(left.values())
        count = total - kept_count(total, fraction, rounding="up")
        return keep_largest(weights, count, present=alive)
    masks: Masks = {}
    for name, weight in weights.items():
        count = left[name] - kept_count(left[name], fraction, rounding="up")
        masks |= keep_largest({name: weight}, count, present={name: alive[name]})
    return masks
