"""The widths of a whole network, chosen from what was learned, by one palette and one budget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from latewood.precision.noise_training import learned_groups
from latewood.precision.patterns import fit_channels
from latewood.precision.snapping import (
    drop_cheapest,
    nearest_levels,
    snap_to_average,
    two_levels,
)
from latewood.precision.weight_precision import WeightPrecision

__all__ = ["chosen_bits", "fitted_bits", "taps_of"]


def chosen_bits(
    precisions: Mapping[str, WeightPrecision],
    squares: Mapping[str, Tensor],
    palette: tuple[int, ...] | Literal["two_levels"],
    *,
    target: float | None,
    price: float,
) -> dict[str, Tensor]:
    """The width of everything whose bits are learned.

    Args:
        precisions: by the name of the weight.
        squares: mean square of the weights of each s, on the grid's scale, of its shape.
        palette: ascending levels; 0 takes channels away that are not worth the least of the others.
        target: average over the weights, met from below; None takes the nearest level of each.
        price: (lambda) of a bit of one weight.

    Returns:
        uint8 of the shape of each s.
    """
    groups = learned_groups(precisions.values(), all_of=True)
    levels = palette
    if levels == "two_levels":
        pair = two_levels(groups.bits, groups.counts, groups.curvature, price=price, average=target)
        levels = tuple(sorted(set(pair)))
    positive = tuple(level for level in levels if level)
    chosen = nearest_levels(groups.bits, positive)
    sizes = [precision.bits.numel() for precision in precisions.values()]
    if 0 in levels:
        flat = torch.cat([squares[name].flatten() for name in precisions])
        gone = drop_cheapest(chosen, groups.counts, groups.curvature, flat, price=price)
        _keep_one_of_each(gone, groups.curvature, sizes)
    else:
        gone = torch.zeros_like(chosen, dtype=torch.bool)
    if target is not None:
        stay = ~gone
        budget = target * float(groups.counts.sum()) / float(groups.counts[stay].sum())
        average = min(max(budget, positive[0]), positive[-1])
        chosen[stay] = snap_to_average(groups.bits[stay], groups.counts[stay], positive, average)
    chosen[gone] = 0
    parts = chosen.split(sizes)
    return {
        name: part.view(precision.bits.shape)
        for (name, precision), part in zip(precisions.items(), parts, strict=True)
    }


def fitted_bits(
    bits: Tensor, learned: Tensor, taps: int, patterns: int | tuple[int | tuple[int, int, int], ...]
) -> Tensor:
    """The bits of a layer's input channels once they lie in registers of some patterns.

    Args:
        bits: of the channels, uint8, of 4 at most, any shape.
        learned: the real bits of the same channels; those with the most are promoted first.
        taps: weights of one output in one channel.
        patterns: as ``patterns.pattern_set`` takes them.

    Returns:
        uint8 of the shape of ``bits``; no channel has fewer than before.
    """
    fit = fit_channels(
        bits.flatten().cpu(), patterns, taps=taps, importance=learned.flatten().cpu()
    )
    assert fit.bits is not None
    return fit.bits.view(bits.shape).to(bits.device)


def taps_of(stored: Tensor, precision: WeightPrecision) -> int:
    """Weights of one output in one input channel.

    Args:
        stored: the weight.
        precision: on it.
    """
    outputs = precision.scale.numel()
    return max(1, stored.numel() // max(outputs * precision.bits.numel(), 1))


def _keep_one_of_each(gone: Tensor, curvature: Tensor, sizes: list[int]) -> None:
    """A layer without any channel would make the network constant."""
    for lost, values in zip(gone.split(sizes), curvature.split(sizes), strict=True):
        if bool(lost.all()):
            lost[values.argmax()] = False
