"""Clipped values with uniform noise that nobody stores, their gradients, and their extent."""

from __future__ import annotations

import torch
from torch import Tensor

from latewood.errors import invalid
from latewood.kernels.dispatch import native_for
from latewood.kernels.misfits import require_memory
from latewood.kernels.noise.native_noise import NoisyValues, runs_of
from latewood.kernels.noise.reference_noise import (
    clipped,
    extent_reference,
    noise_reference,
    philox,
)
from latewood.kernels.noise.uniform import uniform_noise

__all__ = [
    "extent",
    "extent_reference",
    "noise_reference",
    "noisy",
    "noisy_reference",
    "philox",
    "uniform_noise",
]


def noisy(
    values: Tensor,
    width: Tensor,
    key: Tensor,
    *,
    low: Tensor | None = None,
    high: Tensor | None = None,
) -> Tensor:
    r"""Adds uniform noise to values, which are clipped before so that it stays between bounds.

    .. math:: y = \min(\max(x, l + w), h - w) + w \, u, \quad u \sim U(-1, 1)

    The noise is drawn again for the gradients, so that the native form stores nothing but its
    inputs.

    Args:
        values: (x) any shape.
        width: (w) half-width of the noise, broadcasts to ``values``; the native form needs the axes
            along which it differs side by side.
        key: 0-dim int64, which with the place determines the noise (``uniform_noise``).
        low: (l) least value of the result, 0-dim, a constant; None clips nothing.
        high: (h) largest, given with ``low``.

    Returns:
        Of the shape and dtype of ``values``, computed in at least float32; differentiable, also
        twice, in ``values`` and ``width``. The gradient of a clipped value goes to the width.

    Raises:
        RequestError: shapes that do not fit, one bound without the other, bounds or a key that are
            no numbers on the device of ``values``, or memory of an input that is not there.

    Source: trainable noise of SMOL (Savarese et al., NeurIPS 2022), reconstructed.
    """
    _require(values, width, key, low, high)
    if native_for(values) is not None and values.numel():
        compact = width.contiguous()
        runs = runs_of(values, width.shape) if native_for(compact) is not None else None
        if runs is not None:
            limits = None if low is None or high is None else (float(low), float(high))
            result: Tensor = NoisyValues.apply(values, compact, limits, int(key), runs)
            return result
    require_memory(values=values, width=width)
    return noisy_reference(values, width, key, low=low, high=high)


def noisy_reference(
    values: Tensor,
    width: Tensor,
    key: Tensor,
    *,
    low: Tensor | None = None,
    high: Tensor | None = None,
) -> Tensor:
    """``noisy`` in plain torch: the oracle, on any device and in any float dtype."""
    wide = values.to(torch.promote_types(values.dtype, torch.float32))
    if low is not None and high is not None:
        wide = clipped(wide, width, low, high)
    return (wide + width * uniform_noise(values, key)).to(values.dtype)


def extent(values: Tensor) -> Tensor:
    """Mean square, least and largest of values, in one pass.

    Args:
        values: any shape, one element or more.

    Returns:
        (3,) of at least float32, without gradients; NaN where the values have one.

    Raises:
        RequestError: no elements, or memory that is not there.
    """
    if not values.numel():
        raise invalid("values", tuple(values.shape), "one element or more")
    compiled = native_for(values)
    if compiled is None:
        require_memory(values=values)
        return extent_reference(values.detach())
    found = compiled.noise_extent(values, torch.get_num_threads())
    return torch.tensor(found, dtype=torch.float32)


def _require(
    values: Tensor, width: Tensor, key: Tensor, low: Tensor | None, high: Tensor | None
) -> None:
    sizes, own = values.shape, width.shape
    fits = len(own) <= len(sizes) and all(
        size in (1, whole) for size, whole in zip(reversed(own), reversed(sizes), strict=False)
    )
    if not fits:
        raise invalid("width", tuple(own), f"a shape that broadcasts to {tuple(sizes)}")
    if (low is None) != (high is None):
        missing = "low" if low is None else "high"
        raise invalid(missing, None, "both bounds, or neither")
    numbers = {"low": low, "high": high, "key": key}
    for name, number in numbers.items():
        if number is not None and (number.dim() or number.device != values.device):
            got = f"{tuple(number.shape)} on {number.device}"
            raise invalid(name, got, f"a 0-dim tensor on {values.device}")
    if key.dtype is not torch.int64:
        raise invalid("key, dtype", key.dtype, "torch.int64")
