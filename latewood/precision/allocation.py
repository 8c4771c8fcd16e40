"""Bits for a trained network without training: the closed form on its curvature."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from latewood.core.parameter_uses import parameter_uses
from latewood.errors import RequestError, invalid
from latewood.precision.formats import leave_weight_format
from latewood.precision.number_format import MOST_BITS, quantize_unchecked
from latewood.precision.quantizable_weights import axes_of, quantizable
from latewood.precision.snapping import (
    candidate_levels,
    checked_palette,
    require_reachable,
    snap_to_average,
    two_levels,
)
from latewood.precision.water_filling import optimal_bits, price_of_average
from latewood.precision.weight_precision import Sharing, WeightPrecision

__all__ = ["Allocation", "allocate", "curvature_of"]


@dataclass(frozen=True)
class Allocation:
    """Bits for every weight of a network.

    Args:
        bits: uint8 by the name of the weight, broadcasts to it.
        scales: (alpha) by the name of the weight, broadcasts to it.
        average: bits over the weights whose bits were chosen.
        price: of a bit of one weight at which the bits are worth it.
    """

    bits: dict[str, Tensor]
    scales: dict[str, Tensor]
    average: float
    price: float

    @torch.no_grad()
    def apply(self, model: nn.Module) -> nn.Module:
        """Rounds the weights of a model in place, and leaves their formats beside them.

        Args:
            model: that the bits are for, with plain layers.

        Returns:
            The model.

        Raises:
            RequestError: it lacks one of the weights, or one has another shape.
        """
        uses = {use.name: other for other in parameter_uses(model).values() for use in other}
        missing = [name for name in self.bits if name not in uses]
        if missing:
            raise invalid("model", missing, "a model with these weights")
        for name, bits in self.bits.items():
            first = uses[name][0]
            weight, scale = first.stored, self.scales[name]
            rounded = quantize_unchecked(weight.to(scale.dtype) / scale, bits) * scale
            for use in uses[name]:
                leave_weight_format(use.module, bits, scale, parameter_name=use.parameter_name)
            weight.copy_(rounded)
        return model


def allocate(
    model: nn.Module,
    *,
    target_bits: float,
    curvature: Mapping[str, Tensor] | None = None,
    loss: Callable[[nn.Module], Tensor] | None = None,
    per: Sharing = "input_channel",
    palette: Sequence[int] | Literal["two_levels", "three_levels"] = (1, 2, 4),
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = ("first", "last"),
    samples: int = 8,
    seed: int = 0,
) -> Allocation:
    """Chooses bits for trained weights by the curvature of the loss, with an average asked for.

    Every factor of 4 in curvature is worth one bit (``optimal_bits``); then bits snap to the
    palette at thresholds that meet the average.

    Args:
        model: trained, with plain layers; it is not changed.
        target_bits: average over the weights whose bits are chosen, met from below.
        curvature: diagonal of the Hessian of the loss, by the name of the weight, of its shape.
        loss: instead of it: the loss of the model on some data, a differentiable scalar; it is
            differentiated twice ``samples`` times (``curvature_of``).
        per: what shares one number of bits.
        palette: as for ``LearnedPrecision``, without 0.
        include: as there.
        exclude: as there: 8 bits.
        samples: random directions for the curvature.
        seed: of them.

    Returns:
        The bits; ``apply`` rounds a model with them.

    Raises:
        RequestError: an argument out of range, curvature that lacks a weight or is nowhere
            positive, or an average out of reach.

    Source: the closed form is inferred [I].
    """
    if (curvature is None) == (loss is None):
        given = "neither" if loss is None else "both"
        raise invalid("curvature", given, "either curvature or loss, and not both")
    levels = checked_palette(palette)
    if 0 in candidate_levels(levels):
        raise invalid("palette", palette, "levels of 1 bit and more")
    require_reachable(target_bits, levels)
    chosen = quantizable(model, include, exclude)
    names = [weight.name for weight in chosen.learned]
    if curvature is None:
        assert loss is not None
        stored = {weight.name: weight.stored for weight in chosen.learned}
        curvature = curvature_of(model, stored, loss, samples=samples, seed=seed)
    precisions: dict[str, WeightPrecision] = {}
    of_groups = []
    for weight in [*chosen.learned, *chosen.fixed]:
        axes = axes_of(weight.module)
        assert axes is not None
        learned = weight.name in names
        precision = WeightPrecision(
            weight.stored, axes, per=per, levels=(MOST_BITS,), initial_bits=None, scale="max"
        )
        if not learned:
            precision.snap(None, weight.stored)
        precisions[weight.name] = precision
        if learned:
            by_weight = curvature.get(weight.name)
            if by_weight is None or by_weight.shape != weight.stored.shape:
                shape = None if by_weight is None else tuple(by_weight.shape)
                expected = f"a tensor of shape {tuple(weight.stored.shape)}"
                raise invalid(f"curvature[{weight.name!r}]", shape, expected)
            on_grid = by_weight.to(precision.scale.dtype) * precision.scale.square()
            count = weight.stored.numel() // precision.bits.numel()
            of_groups.append((precision.reduced(on_grid) / count).flatten().clamp_min(0).double())
    heights = torch.cat(of_groups)
    sizes = [precisions[name].bits.numel() for name in names]
    counts = torch.cat(
        [
            torch.full((size,), precisions[name].weights // size, dtype=torch.float64)
            for name, size in zip(names, sizes, strict=True)
        ]
    ).to(heights.device)
    price = price_of_average(heights, counts, min(max(target_bits, 1.001), MOST_BITS - 0.001))
    bits = optimal_bits(heights, price)
    if levels == "two_levels":
        pair = two_levels(bits, counts, heights, price=price, average=target_bits)
        levels = tuple(sorted(set(pair)))
    snapped = snap_to_average(bits, counts, levels, target_bits)
    result = {
        name: precisions[name].expanded(part.view(precisions[name].bits.shape)).clone()
        for name, part in zip(names, snapped.split(sizes), strict=True)
    }
    result |= {w.name: precisions[w.name].bits.clone() for w in chosen.fixed}
    average = float((snapped.double() * counts).sum() / counts.sum())
    scales = {name: precisions[name].scale.clone() for name in result}
    return Allocation(result, scales, average, price)


def curvature_of(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    loss: Callable[[nn.Module], Tensor],
    *,
    samples: int = 8,
    seed: int = 0,
) -> dict[str, Tensor]:
    r"""The diagonal of the Hessian by random signs: the mean of :math:`v \odot H v`.

    Args:
        model: any module.
        weights: parameters of it by name, that require gradients.
        loss: of the model, a differentiable scalar, twice.
        samples: number of directions.
        seed: of the directions.

    Returns:
        By name, of the shape of each weight.

    Raises:
        RequestError: a loss that none of the weights changes.

    Source: Hutchinson's estimator.
    """
    generator = torch.Generator().manual_seed(seed)
    parameters = list(weights.values())
    value = loss(model)
    if not isinstance(value, Tensor) or not value.requires_grad:
        raise RequestError("loss: no differentiable scalar of the model's weights")
    gradients = torch.autograd.grad(value, parameters, create_graph=True, materialize_grads=True)
    sums = [torch.zeros_like(parameter) for parameter in parameters]
    for _ in range(samples):
        signs = [
            (torch.randint(0, 2, p.shape, generator=generator) * 2 - 1).to(p) for p in parameters
        ]
        products = torch.autograd.grad(
            gradients, parameters, signs, retain_graph=True, materialize_grads=True
        )
        for total, sign, product in zip(sums, signs, products, strict=True):
            total.add_(sign * product / samples)
    return dict(zip(weights, sums, strict=True))
