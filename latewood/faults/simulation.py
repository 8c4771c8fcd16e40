"""Weights written to crossbars with stuck cells, and what is read back."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from latewood.errors import invalid, require_seed
from latewood.faults.crossbar import Crossbar
from latewood.faults.encoding import encode, require_codes
from latewood.faults.fault_maps import cell_states, exact_states
from latewood.faults.placement import WeightAxes
from latewood.faults.stuck_at import StuckAt, require_types, warn_of_misalignment
from latewood.kernels.faults import (
    HRS,
    LRS,
    Stream,
    draw_states,
    limits_of,
    read_drawn,
    read_states_reference,
)

__all__ = ["read_back", "read_codes", "require_map", "signs_of"]


def read_back(
    weight: Tensor,
    crossbar: Crossbar,
    faults: StuckAt,
    *,
    map: int = 0,
    seed: int = 0,
    name: str = "weight",
) -> Tensor:
    """The integers that are read of a weight on a device with stuck cells.

    The faults depend on seed, map and name alone. Multiplied by the scale of ``encode`` they are
    the weights that the layer computes with, but where all weights of a unit are 0: it stays 0.

    Args:
        weight: floating, finite, any shape, the output channels first.
        crossbar: how it is held.
        faults: of its cells.
        map: number of the device, 0 or more.
        seed: of all maps, 0 or more.
        name: of the layer; layers of other names have other faults.

    Returns:
        (q') int32 of the weight's shape; of analog pairs floating numbers in [-1, 1].

    Raises:
        RequestError: a weight that is not floating or not finite, or arguments out of range.

    Warns:
        UserWarning: a highest digit that is not aligned, with cells stuck at the low resistance.
    """
    require_types(crossbar, faults)
    require_map(map, seed)
    warn_of_misalignment(crossbar, faults)
    return read_codes(encode(weight, crossbar).codes, crossbar, faults, Stream(seed, map, name))


def read_codes(
    codes: Tensor,
    crossbar: Crossbar,
    faults: StuckAt,
    stream: Stream,
    *,
    bits: Tensor | None = None,
    axes: WeightAxes | None = None,
) -> Tensor:
    """The integers that are read where others were written.

    Args:
        codes: (q) as ``encode`` gives them.
        crossbar: how they are held.
        faults: of the cells.
        stream: of the layer in the map.
        bits: uint8, broadcasts to ``codes``: of each integer without its sign, where a number
            format gives them; the crossbar's ``weight_bits`` then do not count.
        axes: how the weight is laid out; the outputs first if None.

    Returns:
        (q') of the shape and dtype of ``codes``.

    Raises:
        RequestError: integers that the cells do not hold, or bits with a scheme other than
            "differential".
    """
    if bits is not None:
        return _read_formatted(codes, crossbar, faults, stream, bits, axes)
    require_codes(codes, crossbar)
    if faults.level == "weight":
        return _read_weights(codes, crossbar.largest, faults, stream)
    if faults.independent and not crossbar.is_analog:
        return read_drawn(codes, crossbar.layout, stream, faults.limits)
    states = cell_states(codes.shape, crossbar, faults, stream, axes=axes).to(codes.device)
    if crossbar.is_analog:
        plus, minus = (
            torch.where(state == LRS, 1.0, torch.where(state == HRS, 0.0, part.clamp(min=0)))
            for state, part in zip(states, (codes, -codes), strict=True)
        )
        return (plus - minus).to(codes.dtype)
    return read_states_reference(codes, crossbar.layout, states)


def require_map(map: int, seed: int) -> None:
    """Refuses numbers that start no stream.

    Raises:
        RequestError: one is no whole number from 0 to 2^63 - 1.
    """
    require_seed("map", map)
    require_seed("seed", seed)


def _read_formatted(
    codes: Tensor,
    crossbar: Crossbar,
    faults: StuckAt,
    stream: Stream,
    bits: Tensor,
    axes: WeightAxes | None,
) -> Tensor:
    if crossbar.scheme != "differential":
        expected = "'differential' for weights with a number format, which have their own integers"
        raise invalid("scheme", crossbar.scheme, expected)
    most = int(bits.max()) if bits.numel() else 0
    if most == 0 or codes.numel() == 0:
        return codes.clone()
    if faults.level == "weight":
        largest = (1 << bits.to(torch.int32)) - 1
        return _read_weights(codes, largest, faults, stream)
    layout = crossbar.layout_of(most)
    if faults.independent:
        return read_drawn(codes, layout, stream, faults.limits, bits=bits)
    slices = math.ceil(most / crossbar.bits_per_cell)
    states = cell_states(codes.shape, crossbar, faults, stream, axes=axes, slices=slices)
    return read_states_reference(codes, layout, states.to(codes.device), bits=bits)


def _read_weights(codes: Tensor, largest: int | Tensor, faults: StuckAt, stream: Stream) -> Tensor:
    """One draw a weight: 0, or the largest of a sign, which a second stream decides."""
    if faults.mode == "exact":
        states = exact_states(codes.numel(), faults, stream)
    else:
        states = draw_states(codes.numel(), stream, faults.limits)
    states = states.view(codes.shape).to(codes.device)
    read = codes.masked_fill(states == HRS, 0)
    if faults.lrs > 0:
        signs = draw_states(codes.numel(), signs_of(stream), limits_of(0.5, 0.0))
        signs = (2 * signs.to(codes.dtype) - 1).view(codes.shape).to(codes.device)
        read = torch.where(states == LRS, signs * largest, read)
    return read


def signs_of(stream: Stream) -> Stream:
    """The stream that decides the signs of weights stuck at their largest."""
    return Stream(stream.seed, stream.map, f"{stream.name}/signs")
