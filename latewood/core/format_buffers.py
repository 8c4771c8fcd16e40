"""What a baked number format leaves beside a plain weight: buffers of its bits and scale."""

from __future__ import annotations

from typing import Final

from torch import Tensor, nn

__all__ = ["BITS", "SCALE", "format_buffers"]

BITS: Final = "_bits"
"""Ending of the buffer of bits, after the weight's name."""
SCALE: Final = "_scale"
"""Ending of the buffer of scales."""


def format_buffers(layer: nn.Module, parameter_name: str) -> tuple[Tensor, Tensor] | None:
    """Bits and scale of the grid that a weight lies on; None where it has no number format.

    Args:
        layer: any module.
        parameter_name: the tensor's name in the layer.

    Returns:
        Two tensors that broadcast to the weight.
    """
    # The collections of scripted modules have no ``get``.
    buffers = dict(layer._buffers.items())
    bits, scale = (buffers.get(parameter_name + ending) for ending in (BITS, SCALE))
    return None if bits is None or scale is None else (bits, scale)
