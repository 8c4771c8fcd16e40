"""Masks on trained weights, and their controls: random places, and the same places drawn anew."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from latewood.core.masks import bernoulli_masks as random_masks
from latewood.core.masks import keep_largest, kept_count
from latewood.errors import invalid
from latewood.spectra.interventions import (
    Batches,
    Forward,
    chosen_weights,
    remeasure,
    replace_weights,
)
from latewood.spectra.matrices.weights import spectral_parameters
from latewood.spectra.output_heads import ExampleInputs

__all__ = ["apply_masks_", "magnitude_masks", "random_masks", "reinitialize_"]


def magnitude_masks(weights: Mapping[str, Tensor], keep: float) -> dict[str, Tensor]:
    """Masks that keep the largest entries of all weights together, exactly int(keep * count).

    Args:
        weights: tensors by name, see ``weight_matrices``.
        keep: share of all entries to keep, in [0, 1].

    Returns:
        Boolean masks by name; of equal entries see ``core.masks.keep_largest``.

    Raises:
        RequestError: a share outside [0, 1], no weight, or one that is not finite.

    Source: arXiv 2408.11804, section 5.2, one global threshold.
    """
    if not 0 <= keep <= 1:
        raise invalid("keep", keep, "a number from 0 to 1")
    if not weights:
        raise invalid("weights", {}, "at least one weight")
    for name, weight in weights.items():
        if not weight.isfinite().all():
            raise invalid("weights", name, "weights without NaN or Inf")
    # Counted over all layers together, and rounded down.
    total = sum(weight.numel() for weight in weights.values())
    return keep_largest(weights, kept_count(total, keep, rounding="down"))


@torch.no_grad()
def apply_masks_(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    *,
    batches: Batches | None = None,
    forward: Forward | None = None,
) -> None:
    """Sets the weights of a model outside their masks to zero, in place.

    Args:
        model: any module.
        masks: boolean masks by full name of the parameter.
        batches: see ``truncate_``.
        forward: see ``truncate_``.

    Raises:
        RequestError: a name that is no matrix of the model, or a mask of another shape.
    """
    known = {weight.name: weight for weight in spectral_parameters(model)}
    for name, mask in masks.items():
        if name not in known:
            raise invalid("masks", name, f"one of {', '.join(known)}")
        if mask.shape != known[name].stored.shape:
            expected = f"the shape {tuple(known[name].stored.shape)} of {name}"
            raise invalid("masks", tuple(mask.shape), expected)
    for name, mask in masks.items():
        # Not a product: a NaN under the mask must not stay.
        known[name].stored.masked_fill_(~mask.to(known[name].stored.device), 0.0)
    remeasure(model, batches, forward)


def reinitialize_(
    model: nn.Module,
    *,
    seed: int,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    skip_head: bool = True,
    example_inputs: ExampleInputs | None = None,
    batches: Batches | None = None,
    forward: Forward | None = None,
) -> list[str]:
    r"""Draws every weight matrix of a model anew, in place; biases, norms and the head stay.

    .. math:: W \sim U(-1 / \sqrt{n}, 1 / \sqrt{n}), \quad n = \text{entries of one row}

    The third control of tickets: masked by the largest trained weights, but trained from fresh
    ones, a network tells what the places are worth without the values.

    Args:
        model: any module without transformations on these weights.
        seed: of the draws; the same on every device.
        include: globs on layer or parameter names to cover.
        exclude: globs on layer or parameter names to leave out.
        skip_head: leave out the weights that make the model's output, see ``output_heads``.
        example_inputs: what the model is called with, by which its output head is known for sure.
        batches: see ``truncate_``.
        forward: see ``truncate_``.

    Returns:
        The names of the changed parameters.

    Raises:
        RequestError: see ``weight_matrices``.

    Source: released code of arXiv 2408.11804, masks of kind "reinit".
    """
    generator = torch.Generator().manual_seed(seed)
    values = {}
    for weight in chosen_weights(model, include, exclude, skip_head, example_inputs):
        shape = weight.stored.shape
        bound = 1 / math.sqrt(shape[1:].numel())
        drawn = torch.rand(shape, generator=generator, dtype=torch.float64)
        values[weight] = bound * (2 * drawn - 1)
    return replace_weights(model, values, batches, forward)
