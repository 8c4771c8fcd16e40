"""The integers behind a weight that has a number format, for what stores weights as integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from latewood.core.format_buffers import format_buffers
from latewood.core.transforms import transformations
from latewood.errors import invalid

__all__ = ["HasGrid", "IntegerCodes", "codes_on_grid", "integer_codes"]


@runtime_checkable
class HasGrid(Protocol):
    """A transformation of order PRECISION that may put weights on a grid of odd integers."""

    def grid(self) -> tuple[Tensor, Tensor] | None:
        """Bits p (uint8) and scale alpha of the grid, which broadcast to the weight; None while it
        is not fixed. Its numbers are ``alpha m 2^(1-p)`` with m odd and ``|m| < 2^p``."""
        ...


@dataclass(frozen=True)
class IntegerCodes:
    """A weight as integers times units: ``weight = unit * codes``.

    Args:
        codes: (m) int32 of the weight's shape, odd, or 0 where a mask has pruned.
        bits: (p) uint8, broadcasts to the weight: ``|m| < 2^p``.
        unit: (alpha 2^(1-p)) floating, broadcasts to the weight.
    """

    codes: Tensor
    bits: Tensor
    unit: Tensor


def integer_codes(layer: nn.Module, parameter_name: str) -> IntegerCodes | None:
    """The integers of a weight that lies on a fixed grid; None if it has none.

    The grid is that of a transformation still at work (``HasGrid``), or that which a baked one has
    left in buffers. Masks around it put zeros in.

    Args:
        layer: any module.
        parameter_name: the tensor's name in the layer.

    Raises:
        RequestError: a grid that the weight is not on, as under masks that are not binary.
    """
    grid = format_buffers(layer, parameter_name)
    for transformation in transformations(layer, parameter_name):
        if isinstance(transformation, HasGrid):
            grid = transformation.grid()
    if grid is None:
        return None
    weight: Tensor = getattr(layer, parameter_name).detach()
    return codes_on_grid(weight, *grid, name=parameter_name)


def codes_on_grid(
    weight: Tensor, bits: Tensor, scale: Tensor, *, name: str = "weight"
) -> IntegerCodes:
    """The integers of a weight on a grid.

    Args:
        weight: floating, on the grid or 0.
        bits: (p) uint8, broadcasts to the weight.
        scale: (alpha) floating, broadcasts to the weight.
        name: of the weight, for errors.

    Raises:
        RequestError: a weight that is not on the grid.
    """
    wide = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    unit = scale.to(wide.dtype) * torch.exp2(1.0 - bits.to(wide.dtype))
    steps = wide / unit
    most = torch.exp2(bits.to(wide.dtype)) - 1
    nearest = (2 * torch.floor(steps / 2) + 1).clamp(-most, most)
    there = (wide != 0) & (bits > 0)
    # As far as half precision may have moved a number of 8 bits.
    near = (steps - nearest).abs() <= 0.2 + 2.0**-6 * steps.abs()
    if not bool((near | ~there).all()) or bool(((wide != 0) & (bits == 0)).any()):
        raise invalid(
            name,
            "numbers beside the grid of its format",
            "a weight on it; finalize the masks around the format first",
        )
    return IntegerCodes(nearest.masked_fill(~there, 0).to(torch.int32), bits, unit)
