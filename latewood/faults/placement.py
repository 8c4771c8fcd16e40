"""Where the cells of a weight lie: array, row and column of each."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy
import torch
from numpy.typing import NDArray

from latewood.faults.crossbar import Crossbar

__all__ = ["CellPositions", "WeightAxes", "cell_positions"]


@dataclass(frozen=True)
class WeightAxes:
    """How a weight tensor is laid out.

    Args:
        outputs: axis of the output channels.
        groups: of a convolution; each is a block of its own on the block diagonal.
    """

    outputs: int = 0
    groups: int = 1


@dataclass(frozen=True)
class CellPositions:
    """Array, row and column of every cell, in the order in which cells are drawn.

    Args:
        array: int64, (cells of a weight, weights).
        row: int64, of the same shape.
        column: int64, of the same shape.
        arrays: how many arrays there are, padding included.
    """

    array: NDArray[numpy.int64]
    row: NDArray[numpy.int64]
    column: NDArray[numpy.int64]
    arrays: int


def cell_positions(
    shape: torch.Size | tuple[int, ...],
    axes: WeightAxes,
    crossbar: Crossbar,
    *,
    slices: int | None = None,
) -> CellPositions:
    """Lays a weight out on arrays.

    Rows are the inputs of an output (channel slowest, then the kernel's rows and columns), columns
    are (output, slice) with the slice fastest; both are cut into tiles. Arrays of the two signs
    are apart.

    Args:
        shape: of the weight.
        axes: how it is laid out.
        crossbar: arrays and cells.
        slices: cells of a weight in an array, the crossbar's if None.
    """
    slices = crossbar.slices if slices is None else slices
    count = math.prod(shape)
    if len(shape) == 0:
        outputs, per_output = 1, 1
        output = inner = numpy.zeros(count, dtype=numpy.int64)
    else:
        outputs = shape[axes.outputs]
        per_output = count // outputs if outputs else 0
        # The position of each weight, in its own order, when the output axis comes first.
        places = numpy.arange(count).reshape(
            [outputs, *(size for axis, size in enumerate(shape) if axis != axes.outputs)]
        )
        places = numpy.moveaxis(places, 0, axes.outputs).reshape(-1)
        output, inner = numpy.divmod(places, max(per_output, 1))
    group = output // max(outputs // axes.groups, 1)
    row = group * per_output + inner
    rows, columns = per_output * axes.groups, outputs * slices
    height, width = crossbar.tile
    across = max(-(-columns // width), 1)
    tiles = max(-(-rows // height), 1) * across
    arrays, at_row, at_column = [], [], []
    for polarity in range(crossbar.arrays):
        for k in range(slices):
            column = output * slices + k
            arrays.append(polarity * tiles + (row // height) * across + column // width)
            at_row.append(row % height)
            at_column.append(column % width)
    return CellPositions(
        numpy.stack(arrays),
        numpy.stack(at_row),
        numpy.stack(at_column),
        tiles * crossbar.arrays,
    )
