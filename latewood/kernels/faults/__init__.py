"""Integers in memory cells, some of which are stuck: drawn by map and layer name, and read back."""

from __future__ import annotations

import torch
from torch import Tensor

from latewood.errors import invalid
from latewood.kernels.faults.cells import GOOD, HRS, LRS, MINUS, PLUS, UNSIGNED, Cell, CellLayout
from latewood.kernels.faults.native_cells import (
    compiled_for,
    draw_states_native,
    read_drawn_native,
)
from latewood.kernels.faults.reference_cells import (
    digits_of,
    draw_states_reference,
    read_drawn_reference,
    read_states_reference,
)
from latewood.kernels.faults.streams import LanePrecision, Limits, Stream, limits_of
from latewood.kernels.misfits import require_memory

__all__ = [
    "GOOD",
    "HRS",
    "LRS",
    "MINUS",
    "PLUS",
    "UNSIGNED",
    "Cell",
    "CellLayout",
    "LanePrecision",
    "Limits",
    "Stream",
    "digits_of",
    "draw_states",
    "draw_states_reference",
    "limits_of",
    "read_drawn",
    "read_drawn_reference",
    "read_states_reference",
]


def draw_states(count: int, stream: Stream, limits: Limits) -> Tensor:
    """Draws the states of cells, each on its own.

    A cell is stuck at HRS where its lane is below T0, at LRS from T1 on (``limits_of``); so with a
    fixed share of both kinds the faults at a rate are among those at any larger one.

    Args:
        count: cells.
        stream: where the lanes come from.
        limits: of the two rates.

    Returns:
        uint8, (count,): GOOD, HRS or LRS.
    """
    compiled = compiled_for(limits)
    if compiled is None:
        return draw_states_reference(count, stream, limits)
    return draw_states_native(compiled, count, stream, limits)


def read_drawn(
    codes: Tensor,
    layout: CellLayout,
    stream: Stream,
    limits: Limits,
    *,
    bits: Tensor | None = None,
) -> Tensor:
    """What is read of integers whose cells are stuck at random, ``read_states`` of ``draw_states``.

    Args:
        codes: (q) int32, any shape; what the layout can hold.
        layout: of the cells; lane ``c n + i`` is that of cell c of the integer i of n.
        stream: where the lanes come from.
        limits: of the two rates.
        bits: of each integer, broadcasts to ``codes``, where they differ.

    Returns:
        (q') int32 of the shape of ``codes``.

    Raises:
        RequestError: another dtype, or memory that is not there.
    """
    if codes.dtype != torch.int32:
        raise invalid("codes", codes.dtype, "torch.int32")
    require_memory(codes=codes)
    compiled = compiled_for(limits, len(layout.cells), codes) if bits is None else None
    if compiled is None:
        return read_drawn_reference(codes, layout, stream, limits, bits=bits)
    return read_drawn_native(compiled, codes, layout, stream, limits)
