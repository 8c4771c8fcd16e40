"""Codes of 0 to 8 bits as streams of bytes, without a bit between them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from latewood.errors import WorkError

__all__ = ["from_stream", "stream_bytes", "to_stream"]


def to_stream(codes: Tensor, bits: Tensor) -> Tensor:
    """Codes one after the other, each with the bits of its channel, the lowest bit first.

    Channels are the second axis. Those of the same width stand together, the widest first, so that
    each width is one run: outputs, then channels, then taps.

    Args:
        codes: uint8, (outputs, channels, ...).
        bits: uint8, (channels,), 0 to 8; codes of 0 bits are left out.

    Returns:
        uint8, 1-dim; the last byte is filled with zeros.
    """
    parts = []
    for width in range(8, 0, -1):
        run = codes[:, bits == width].reshape(-1, 1)
        if run.numel():
            parts.append((run >> torch.arange(width, dtype=torch.uint8)) & 1)
    flat = torch.cat([part.reshape(-1) for part in parts]) if parts else codes.new_zeros(0)
    return torch.from_numpy(np.packbits(flat.numpy(), bitorder="little"))


def from_stream(stream: Tensor, bits: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Codes of a stream.

    Args:
        stream: what ``to_stream`` returned.
        bits: uint8, (channels,).
        shape: of the codes.

    Returns:
        uint8; codes of 0 bits are 0.

    Raises:
        WorkError: the stream has another length.
    """
    if stream.numel() != stream_bytes(bits, shape):
        raise WorkError(
            f"packed codes: {stream.numel()} bytes for the shape {shape}, which needs "
            f"{stream_bytes(bits, shape)}"
        )
    flat = torch.from_numpy(np.unpackbits(stream.cpu().numpy(), bitorder="little"))
    codes = torch.zeros(shape, dtype=torch.uint8)
    start = 0
    for width in range(8, 0, -1):
        of_width = bits.cpu() == width
        run = codes[:, of_width]
        if run.numel():
            end = start + run.numel() * width
            places = flat[start:end].reshape(-1, width) << torch.arange(width, dtype=torch.uint8)
            codes[:, of_width] = places.sum(1, dtype=torch.uint8).reshape(run.shape)
            start = end
    return codes


def stream_bytes(bits: Tensor, shape: tuple[int, ...]) -> int:
    """The bytes of a stream of codes of this shape."""
    in_channel = 1
    for axis, size in enumerate(shape):
        in_channel *= 1 if axis == 1 else size
    return (int(bits.sum()) * in_channel + 7) // 8
