"""Binary masks over named weights: which ones fit, the largest weights, and random controls.

Two ways of counting are in use. Where a number of weights is asked for it is met exactly
(``keep_largest``, ``shuffled_masks``), and ``kept_count`` says how a fraction becomes a number:
"nearest" for a density that is asked for, "down" where a share of the weights may at most stay,
"up" to keep what is left when a share that must go is rounded down. ``bernoulli_masks`` draws every
entry on its own, so that the density of a layer is met in the mean only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor

from latewood.errors import invalid, listed

__all__ = [
    "Masks",
    "bernoulli_masks",
    "keep_largest",
    "kept_count",
    "marked_fractions",
    "present_masks",
    "require_masks",
    "shuffled_masks",
]

Masks = dict[str, Tensor]
"""Parameter name -> bool tensor of the weight's shape, True where kept."""


def kept_count(total: int, fraction: float, *, rounding: Literal["nearest", "down", "up"]) -> int:
    """How many of some weights a fraction of them is.

    Args:
        total: number of weights.
        fraction: in [0, 1]; read as the decimal number it prints as, so that 0.07 of 100 is 7
            however it is rounded.
        rounding: "nearest" (a half goes to the even number), "down" or "up".

    Raises:
        RequestError: a fraction out of range, or another rounding.
    """
    if not isinstance(fraction, int | float) or not 0.0 <= fraction <= 1.0:
        raise invalid("fraction", fraction, "a number in [0, 1]")
    exact = Fraction(repr(float(fraction))) * total
    if rounding == "nearest":
        return round(exact)
    if rounding not in ("down", "up"):
        raise invalid("rounding", rounding, "'nearest', 'down' or 'up'")
    return math.floor(exact) if rounding == "down" else math.ceil(exact)


def keep_largest(
    weights: Mapping[str, Tensor], count: int, *, present: Mapping[str, Tensor] | None = None
) -> Masks:
    """Keeps exactly ``count`` weights over all layers together, the largest by |w|.

    Applied once to trained weights it is one-shot magnitude pruning. Of equal magnitudes the first
    is removed, by parameter name, then by position: the order of the layers does not matter. NaN
    counts as the largest magnitude. A layer may lose all its weights.

    Args:
        weights: parameter name -> weight, any shapes.
        count: how many stay, 0 to the number present.
        present: masks of what may stay; None is everything.

    Returns:
        Parameter name -> bool mask of the weight's shape, True where kept, in the weights' order.

    Raises:
        RequestError: a count out of range, no weights, or masks that do not fit.
    """
    alive = present_masks(weights, present)
    total = sum(int(mask.sum()) for mask in alive.values())
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= total:
        raise invalid("count", count, f"a whole number, 0 to {total}, the weights present")
    names = sorted(weights)
    sizes = torch.cat([_sizes(weights[name], alive[name]) for name in names])
    mask = torch.zeros_like(sizes, dtype=torch.bool)
    if count:
        threshold = sizes.kthvalue(len(sizes) - count + 1).values
        mask = sizes > threshold
        ties = (sizes == threshold).nonzero().flatten()
        mask[ties[len(ties) - (count - int(mask.sum())) :]] = True
    parts = dict(zip(names, mask.split([weights[name].numel() for name in names]), strict=True))
    return {
        name: parts[name].view(weight.shape).to(weight.device) for name, weight in weights.items()
    }


def marked_fractions(
    marked: Mapping[str, Tensor], layers: Mapping[str, str]
) -> tuple[float, dict[str, float]]:
    """Which fraction of all entries is marked, and of each layer's, its tensors taken together.

    Args:
        marked: parameter name -> bool tensor.
        layers: parameter name -> name of its layer; where that is empty, the parameter's counts.

    Returns:
        The fraction of all, and the fraction by layer in the order of the parameters.
    """
    counts: dict[str, int] = {}
    sizes: dict[str, int] = {}
    for name, marks in marked.items():
        layer = layers[name] or name
        counts[layer] = counts.get(layer, 0) + int(marks.sum())
        sizes[layer] = sizes.get(layer, 0) + marks.numel()
    by_layer = {layer: count / sizes[layer] for layer, count in counts.items()}
    return sum(counts.values()) / sum(sizes.values()), by_layer


def shuffled_masks(masks: Mapping[str, Tensor], *, seed: int) -> Masks:
    """Masks with exactly the same number of weights in every layer, at random places.

    Trained from a ticket's snapshot they tell what the places are worth beyond the counts.

    Args:
        masks: parameter name -> bool mask.
        seed: decides the places; the same on every device.

    Returns:
        Parameter name -> bool mask of the same shape and count.

    Raises:
        RequestError: what is no bool tensor.
    """
    require_masks(masks, masks)
    generator = torch.Generator().manual_seed(seed)
    return {
        name: mask.flatten()[
            torch.randperm(mask.numel(), generator=generator).to(mask.device)
        ].view_as(mask)
        for name, mask in masks.items()
    }


def bernoulli_masks(masks: Mapping[str, Tensor], *, seed: int) -> Masks:
    """Masks that keep each entry, independently, with the density of the given mask of its layer.

    Args:
        masks: parameter name -> bool mask.
        seed: of the draws; the same on every device.

    Returns:
        Parameter name -> bool mask of the same shape; the same count in the mean only.

    Raises:
        RequestError: what is no bool tensor.

    Source: arXiv 2408.11804, section 5.2, the control of masks by magnitude.
    """
    require_masks(masks, masks)
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (torch.rand(mask.shape, generator=generator) < mask.double().mean().item()).to(
            mask.device
        )
        for name, mask in masks.items()
    }


def require_masks(masks: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Refuses masks that do not fit the weights of their names.

    Args:
        masks: parameter name -> mask.
        weights: parameter name -> weight; other names may be there too.

    Raises:
        RequestError: no mapping, an unknown name, no tensor, another shape or dtype than bool.
    """
    if not isinstance(masks, Mapping):
        raise invalid("masks", type(masks).__name__, "a mapping of parameter names to masks")
    for name, mask in masks.items():
        if name not in weights:
            raise invalid("masks", name, f"names of weights: {listed(weights)}")
        if not isinstance(mask, Tensor):
            raise invalid(f"masks[{name!r}]", type(mask).__name__, "a torch tensor of torch.bool")
        if mask.dtype != torch.bool or mask.shape != weights[name].shape:
            raise invalid(
                f"masks[{name!r}]",
                f"{mask.dtype} of shape {tuple(mask.shape)}",
                f"torch.bool of shape {tuple(weights[name].shape)}",
            )


def present_masks(weights: Mapping[str, Tensor], present: Mapping[str, Tensor] | None) -> Masks:
    """The masks of what is present: those given, on the weights' devices, or everything.

    Raises:
        RequestError: no weights, weights that are no tensors, or masks that do not fit them.
    """
    if not isinstance(weights, Mapping) or not weights:
        raise invalid("weights", "none", "a mapping of parameter names to tensors, one or more")
    for name, weight in weights.items():
        if not isinstance(weight, Tensor):
            raise invalid(f"weights[{name!r}]", type(weight).__name__, "a torch tensor")
    if present is None:
        return {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    require_masks(present, weights)
    if present.keys() != weights.keys():
        raise invalid("present", sorted(present), f"masks of {sorted(weights)}")
    return {name: mask.to(weights[name].device) for name, mask in present.items()}


def _sizes(weight: Tensor, alive: Tensor) -> Tensor:
    """Magnitudes on the CPU, those of what is gone below all others."""
    kind = torch.promote_types(weight.dtype, torch.float32)
    sizes = weight.detach().abs().to("cpu", kind).nan_to_num(nan=math.inf, posinf=math.inf)
    return sizes.masked_fill(~alive.cpu(), -1.0).flatten()
