"""The state of every cell of a layer in one map, for faults that do not come one by one."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import cast

import numpy
import torch
from numpy.typing import NDArray
from scipy.special import betaincinv, ndtr, ndtri
from torch import Tensor

from latewood.faults.crossbar import Crossbar
from latewood.faults.placement import CellPositions, WeightAxes, cell_positions
from latewood.faults.stuck_at import ArrayBeta, Gaussian, StuckAt
from latewood.kernels.faults import HRS, LRS, Stream, draw_states

__all__ = ["cell_states", "exact_states"]

Uniforms = NDArray[numpy.float64]


def cell_states(
    shape: torch.Size | tuple[int, ...],
    crossbar: Crossbar,
    faults: StuckAt,
    stream: Stream,
    *,
    axes: WeightAxes | None = None,
    slices: int | None = None,
) -> Tensor:
    """The states of the cells of a weight.

    Args:
        shape: of the weight.
        crossbar: how it is held.
        faults: of its cells.
        stream: of the layer in the map.
        axes: how the weight is laid out; the outputs first if None.
        slices: cells of a weight in an array, the crossbar's if None.

    Returns:
        uint8, (cells of a weight, \\*shape): ``kernels.faults`` GOOD, HRS or LRS.
    """
    slices = crossbar.slices if slices is None else slices
    cells = crossbar.arrays * slices
    count = cells * math.prod(shape)
    if faults.mode == "exact":
        states = exact_states(count, faults, stream)
    elif faults.clusters is None:
        states = draw_states(count, stream, faults.limits)
    else:
        positions = cell_positions(shape, axes or WeightAxes(), crossbar, slices=slices)
        states = torch.from_numpy(_clustered(positions, crossbar, faults, stream))
    states = states.view(cells, *shape)
    if faults.lines is not None:
        positions = cell_positions(shape, axes or WeightAxes(), crossbar, slices=slices)
        broken = torch.from_numpy(_on_broken_line(positions, crossbar, faults, stream))
        state = HRS if faults.lines.at == "hrs" else LRS
        states = states.masked_fill(broken.view(states.shape), state)
    return states


def exact_states(count: int, faults: StuckAt, stream: Stream) -> Tensor:
    """States with round(p n) faults of each kind: of the lowest words, and of the highest.

    Args:
        count: (n) cells, or weights.
        faults: their rates.
        stream: of the layer in the map.

    Returns:
        uint8, (count,).
    """
    states = numpy.zeros(count, dtype=numpy.uint8)
    low = min(round(faults.hrs * count), count)
    high = min(round(faults.lrs * count), count - low)
    order = numpy.argsort(stream.words(count), kind="stable")
    states[order[:low]] = HRS
    states[order[count - high :]] = LRS
    return torch.from_numpy(states)


def _clustered(
    positions: CellPositions, crossbar: Crossbar, faults: StuckAt, stream: Stream
) -> NDArray[numpy.uint8]:
    uniforms: Uniforms
    rate = faults.rate
    if rate == 0:
        return numpy.zeros(positions.array.shape, dtype=numpy.uint8)
    share = faults.hrs / rate
    if isinstance(faults.clusters, ArrayBeta):
        rates = _array_rates(positions.arrays, rate, faults.clusters.rho, stream)[positions.array]
        uniforms = stream.uniforms(positions.array.size).reshape(positions.array.shape)
        low, high = rates * share, 1.0 - rates * (1.0 - share)
    else:
        assert isinstance(faults.clusters, Gaussian)
        field = _fields(positions.arrays, crossbar.tile, faults.clusters.sigma, stream)
        uniforms = ndtr(field)[positions.array, positions.row, positions.column]
        low, high = numpy.asarray(faults.hrs), numpy.asarray(1.0 - faults.lrs)
    states = numpy.zeros(uniforms.shape, dtype=numpy.uint8)
    states[uniforms < low] = HRS
    states[uniforms >= high] = LRS
    return states


def _array_rates(arrays: int, rate: float, rho: float, stream: Stream) -> Uniforms:
    """One rate an array, by the quantile of a uniform number, so that rates rise together."""
    uniforms = _part(stream, "arrays").uniforms(arrays)
    if rate == 1.0:
        return numpy.ones(arrays)
    strength = 1.0 / rho - 1.0
    rates = betaincinv(rate * strength, (1.0 - rate) * strength, uniforms)
    return cast(Uniforms, rates)


def _fields(arrays: int, tile: tuple[int, int], sigma: float, stream: Stream) -> Uniforms:
    """Smooth Gaussian fields of unit variance on tori of the arrays' size."""
    height, width = tile
    noise = ndtri(_part(stream, "fields").uniforms(arrays * height * width))
    axes = []
    for size in tile:
        distance = numpy.minimum(numpy.arange(size), size - numpy.arange(size))
        axes.append(numpy.exp(-(distance**2) / (2 * sigma**2)))
    kernel = numpy.outer(*axes)
    kernel /= numpy.sqrt((kernel**2).sum())
    spectrum = numpy.fft.rfft2(noise.reshape(arrays, height, width)) * numpy.fft.rfft2(kernel)
    return numpy.fft.irfft2(spectrum, s=tile)


def _on_broken_line(
    positions: CellPositions, crossbar: Crossbar, faults: StuckAt, stream: Stream
) -> NDArray[numpy.bool_]:
    assert faults.lines is not None
    height, width = crossbar.tile
    rows = _part(stream, "rows").uniforms(positions.arrays * height) < faults.lines.row
    columns = _part(stream, "columns").uniforms(positions.arrays * width) < faults.lines.column
    return cast(
        NDArray[numpy.bool_],
        rows[positions.array * height + positions.row]
        | columns[positions.array * width + positions.column],
    )


def _part(stream: Stream, part: str) -> Stream:
    """The stream of what a layer's arrays share, apart from that of its cells."""
    return replace(stream, name=f"{stream.name}/{part}")
