"""Integers written to cells and read back under faults, in plain torch: the oracle."""

from __future__ import annotations

import numpy
import torch
from torch import Tensor

from latewood.kernels.faults.cells import HRS, LRS, MINUS, PLUS, CellLayout
from latewood.kernels.faults.streams import Limits, Stream

__all__ = [
    "digits_of",
    "draw_states_reference",
    "read_drawn_reference",
    "read_states_reference",
]


def digits_of(codes: Tensor, layout: CellLayout) -> Tensor:
    """The digits that the cells hold: int32, (cells, *shape of codes).

    Args:
        codes: (q) int32, any shape.
        layout: of the cells.
    """
    sources = _sources(codes, layout)
    mask = (1 << layout.digit_bits) - 1
    return torch.stack([(sources[cell.source] >> cell.shift) & mask for cell in layout.cells])


def read_drawn_reference(
    codes: Tensor,
    layout: CellLayout,
    stream: Stream,
    limits: Limits,
    *,
    bits: Tensor | None = None,
) -> Tensor:
    """``read_drawn`` in plain torch: the oracle, on any device."""
    states = draw_states_reference(len(layout.cells) * codes.numel(), stream, limits)
    states = states.view(len(layout.cells), *codes.shape).to(codes.device)
    return read_states_reference(codes, layout, states, bits=bits)


def draw_states_reference(count: int, stream: Stream, limits: Limits) -> Tensor:
    """``draw_states`` in plain torch and NumPy: the oracle, on the CPU."""
    low, high, precision = limits
    lanes = stream.lanes(count, precision)
    states = numpy.zeros(count, dtype=numpy.uint8)
    # As 64-bit numbers, since a rate of 1 has a threshold that no lane holds.
    wide = lanes.astype(numpy.int64)
    states[wide < low] = HRS
    states[wide >= high] = LRS
    return torch.from_numpy(states)


def read_states_reference(
    codes: Tensor, layout: CellLayout, states: Tensor, *, bits: Tensor | None = None
) -> Tensor:
    """What is read of integers in cells of known states.

    ``q' = sum_c sign_c 2^shift_c d'_c - offset``, with d' = 0 where a cell is stuck at HRS, the
    highest digit where it is stuck at LRS, and the digit of q elsewhere.

    Args:
        codes: (q) int32, any shape.
        layout: of the cells.
        states: uint8, (cells, *shape of codes): GOOD, HRS or LRS.
        bits: of each integer, broadcasts to ``codes``; slices beyond these bits do not exist.

    Returns:
        int32 of the shape of ``codes``.
    """
    read = torch.zeros_like(codes)
    for cell, digit, state in zip(layout.cells, digits_of(codes, layout), states, strict=True):
        level = torch.where(state == LRS, cell.stuck, torch.where(state == HRS, 0, digit))
        if bits is not None:
            there = (bits.to(torch.int32) - cell.shift).clamp(0, layout.digit_bits)
            level = torch.where(there > 0, level, 0)
            if layout.clamped:
                level = torch.minimum(level, (1 << there) - 1)
        read += cell.sign * (level << cell.shift)
    return read - layout.offset


def _sources(codes: Tensor, layout: CellLayout) -> dict[int, Tensor]:
    sources = {cell.source for cell in layout.cells}
    numbers = {}
    for source in sources:
        if source == PLUS:
            numbers[source] = codes.clamp(min=0)
        elif source == MINUS:
            numbers[source] = (-codes).clamp(min=0)
        else:
            numbers[source] = (codes + layout.offset) & ((1 << layout.width) - 1)
    return numbers
