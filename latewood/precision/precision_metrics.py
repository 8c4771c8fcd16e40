"""Scalars that describe the bits of a network."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from latewood.precision.weight_precision import WeightPrecision

__all__ = ["precision_metrics"]


def precision_metrics(
    precisions: Mapping[str, WeightPrecision],
    layers: Mapping[str, str],
    levels: tuple[int, ...],
    *,
    price: float,
    snapped: bool,
) -> dict[str, float]:
    """Averages of bits over weights, and how the weights divide over the widths.

    Args:
        precisions: by the name of the weight.
        layers: name of the weight -> name of its layer.
        levels: widths that weights may end with.
        price: the penalty's factor now.
        snapped: whether bits are fixed.

    Returns:
        As ``LearnedPrecision.metrics`` says.
    """
    by_layer: dict[str, list[float]] = {}
    shares = dict.fromkeys(levels, 0.0)
    real = rounded = learned = everything = total = 0.0
    for name, precision in precisions.items():
        weights = precision.weights
        now = float(precision.real_bits().double().mean())
        current = precision.bits if precision.s is None else precision.current_bits()
        near = float(current.double().mean())
        entry = by_layer.setdefault(layers[name], [0.0, 0.0])
        entry[0] += now * weights
        entry[1] += weights
        everything += near * weights
        total += weights
        if precision.s is not None:
            real, rounded = real + now * weights, rounded + near * weights
            learned += weights
            for level, count in _counts(current).items():
                part = count / max(current.numel(), 1) * weights
                # A fitted width may be none of the palette's.
                shares[min(levels, key=lambda width: abs(width - level))] += part
    return {
        "bits": real / max(learned, 1.0),
        "rounded_bits": rounded / max(learned, 1.0),
        "all_bits": everything / max(total, 1.0),
        "bytes": everything / 8,
        "price": price,
        "snapped": float(snapped),
        **{f"share/{level}": part / max(learned, 1.0) for level, part in shares.items()},
        **{f"bits/{layer}": bits / count for layer, (bits, count) in by_layer.items()},
    }


def _counts(bits: Tensor) -> dict[int, int]:
    values, counts = torch.unique(bits, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))
