"""Cells drawn and read by compiled code: the same integers as the reference form."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from latewood.kernels.dispatch import native, tensors_are_virtual
from latewood.kernels.faults.cells import CellLayout
from latewood.kernels.faults.streams import Limits, Stream
from latewood.kernels.misfits import is_plain

__all__ = ["compiled_for", "draw_states_native", "read_drawn_native"]

_MOST_CELLS: Final = 32
_WORD: Final = (1 << 64) - 1


def compiled_for(limits: Limits, cells: int = 1, *tensors: Tensor) -> Any:
    """The compiled kernels if they can do this work now, else None.

    Args:
        limits: of 16-bit lanes for them.
        cells: of a weight.
        tensors: that are read.
    """
    if limits.precision != 16 or cells > _MOST_CELLS or tensors_are_virtual():
        return None
    if not is_plain(*tensors) or any(
        tensor.device.type != "cpu" or tensor.layout is not torch.strided for tensor in tensors
    ):
        return None
    return native()


def draw_states_native(compiled: Any, count: int, stream: Stream, limits: Limits) -> Tensor:
    """``draw_states_reference`` of 16-bit lanes."""
    # On the CPU, whatever the default device is.
    states = torch.empty(count, dtype=torch.uint8, device="cpu")
    threads = torch.get_num_threads()
    compiled.faults_draw_states(states, count, _words(stream), limits.low, limits.high, threads)
    return states


def read_drawn_native(
    compiled: Any, codes: Tensor, layout: CellLayout, stream: Stream, limits: Limits
) -> Tensor:
    """``read_drawn_reference`` of integers on the CPU that have the same bits all."""
    written = codes.contiguous()
    read = torch.empty_like(written, memory_format=torch.contiguous_format)
    cells = [[cell.source, cell.shift, cell.sign, cell.stuck] for cell in layout.cells]
    compiled.faults_read_drawn(
        written,
        read,
        written.numel(),
        cells,
        layout.digit_bits,
        layout.offset,
        layout.width,
        _words(stream),
        limits.low,
        limits.high,
        torch.get_num_threads(),
    )
    return read


def _words(stream: Stream) -> list[int]:
    state, increment = stream.state()
    return [state >> 64, state & _WORD, increment >> 64, increment & _WORD]
