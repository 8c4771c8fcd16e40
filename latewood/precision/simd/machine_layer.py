"""A layer of codes as the machine keeps it: registers of weights, padding, border corrections."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latewood.errors import invalid
from latewood.precision.patterns import Pattern, PatternFit, fit_channels
from latewood.precision.simd.register_format import (
    MULTIPLIERS,
    REGISTER_BYTES,
    element_layout,
    pack_registers,
)

__all__ = ["MachineLayer", "lay_out", "reference_accumulators"]

_PADDED: Final = -1


@dataclass(frozen=True)
class MachineLayer:
    """A linear layer or convolution of codes, laid out for the machine. Made by ``lay_out``.

    Args:
        weight_codes: (outputs, channels, *kernel) uint8; of 0 or 2 kernel dimensions.
        bits: (channels,) of the weights and inputs of each channel; 0 for one that has left.
        mask: (outputs, channels, *kernel) bool, which weights there are; None for all.
        fit: how the elements lie in registers.
        vector_patterns: (V,) index of each register's pattern.
        elements: for each register, the element ``channel * taps + tap`` in each slot, -1 for a
            padded one.
        weight_registers: (outputs, V, 16) bytes.
        mask_registers: (outputs, V, 16) bytes; None without a mask.
        stride: of the kernel.
        padding: zeros around the image.
        dilation: of the kernel.
        signed: whether inputs are symmetric; otherwise they are ``(2u + 1) 2^(1 - p)``.
    """

    weight_codes: NDArray[np.uint8]
    bits: NDArray[np.uint8]
    mask: NDArray[np.bool_] | None
    fit: PatternFit
    vector_patterns: NDArray[np.int64]
    elements: tuple[NDArray[np.int64], ...]
    weight_registers: NDArray[np.uint8] = field(repr=False)
    mask_registers: NDArray[np.uint8] | None = field(repr=False)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    signed: bool = True

    @property
    def outputs(self) -> int:
        """Number of outputs."""
        return len(self.weight_codes)

    @property
    def kernel(self) -> tuple[int, ...]:
        """Kernel height and width; () for a linear layer."""
        return self.weight_codes.shape[2:]

    @property
    def taps(self) -> int:
        """Elements of a channel."""
        return int(np.prod(self.kernel, dtype=np.int64))

    @property
    def vectors(self) -> int:
        """(V) registers of one output."""
        return len(self.vector_patterns)

    def output_size(self, inputs: Sequence[int]) -> tuple[int, ...]:
        """Height and width of the output for inputs of a shape; () for a linear layer.

        Args:
            inputs: (samples, channels), or (samples, channels, height, width).

        Raises:
            RequestError: inputs of another shape, or smaller than the kernel.
        """
        channels = self.weight_codes.shape[1]
        expected = ["samples", channels, *(("height", "width") if self.kernel else ())]
        if len(inputs) != len(expected) or inputs[1] != channels:
            raise invalid("inputs", tuple(inputs), f"a shape of {tuple(expected)}")
        size = tuple(
            (length + 2 * pad - step * (taps - 1) - 1) // stride + 1
            for length, pad, step, taps, stride in zip(
                inputs[2:], self.padding, self.dilation, self.kernel, self.stride, strict=False
            )
        )
        if size and min(size) < 1:
            raise invalid("inputs", tuple(inputs), f"images that a kernel of {self.kernel} fits in")
        return size

    def columns(self, inputs: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The codes that meet the weights of one output, for every sample and position.

        Args:
            inputs: codes, (samples, channels) or (samples, channels, height, width).

        Returns:
            (positions, channels * taps) codes, and (positions, taps) whether a tap lies outside
            the image, where the code is 0.

        Raises:
            RequestError: another shape, or codes that do not fit into their channels' bits.
        """
        size = self.output_size(inputs.shape)
        codes = inputs.astype(np.int64)
        width = self.bits.astype(np.int64).reshape(-1, *(1,) * (inputs.ndim - 2))
        # What a channel without bits holds is not read.
        if codes.size and ((codes < 0) | ((codes >> width > 0) & (width > 0))).any():
            raise invalid(
                "inputs", f"{codes.min()} to {codes.max()}", "codes of the channels' bits"
            )
        if not size:
            return codes, np.zeros((len(codes), 1), dtype=np.bool_)
        edges = ((0, 0), (0, 0), *((pad, pad) for pad in self.padding))
        padded = np.pad(codes, edges)
        outside = np.pad(
            np.zeros(inputs.shape[2:], dtype=np.bool_), edges[2:], constant_values=True
        )
        windows, borders = [], []
        for row in range(self.kernel[0]):
            for column in range(self.kernel[1]):
                area = tuple(
                    slice(tap * step, tap * step + (length - 1) * stride + 1, stride)
                    for tap, step, length, stride in zip(
                        (row, column), self.dilation, size, self.stride, strict=True
                    )
                )
                windows.append(padded[:, :, *area])
                borders.append(outside[area])
        # (samples, height, width, channels, taps)
        stacked = np.stack(windows, axis=-1).transpose(0, 2, 3, 1, 4)
        border = np.stack(borders, axis=-1).reshape(size[0] * size[1], self.taps)
        flat = stacked.reshape(len(codes) * size[0] * size[1], len(self.bits) * self.taps)
        return flat, np.tile(border, (len(codes), 1))

    def input_registers(self, columns: NDArray[np.int64]) -> NDArray[np.uint8]:
        """(positions, V, 16) registers of columns; padded slots hold code 0."""
        return _registers(columns, self.elements, self.vector_patterns)

    def corrections(self, outside: NDArray[np.bool_]) -> NDArray[np.int64]:
        r"""What an accumulator starts with where these taps lie outside the image.

        Padded slots hold code 0 on both sides and bring :math:`M(p) (2^p - 1)^2` each; an input
        outside the image has code 0 and brings :math:`-M(p) m_w (2^p - 1)`, where it should bring
        nothing. Inputs that are not symmetric bring :math:`M(p) m_w 2^p` more wherever they are
        inside.

        Args:
            outside: (classes, taps) whether a tap lies outside.

        Returns:
            (classes, outputs), to be added.
        """
        bits = self.bits.astype(np.int64)
        read = np.flatnonzero(bits)
        width = bits[read, None]
        codes = self.weight_codes.reshape(self.outputs, len(bits), self.taps)[:, read].astype(
            np.int64
        )
        odd = (2 * codes - (2**width - 1)) * 4 ** (4 - width)
        if self.mask is not None:
            odd = odd * self.mask.reshape(self.outputs, len(bits), self.taps)[:, read]
        outer = outside.astype(np.int64)
        # (outputs, taps) of what an input of -(2^p - 1), or a shift by 2^p, brings at each tap.
        per_tap = (odd * (2**width - 1)).sum(axis=1)
        sums = outer @ per_tap.T
        if not self.signed:
            sums = sums + (1 - outer) @ (odd * 2**width).sum(axis=1).T
        if self.mask is None:
            surplus = sum(
                count * MULTIPLIERS[p] * (2**p - 1) ** 2
                for p, count in zip((4, 2, 1), self.fit.padding, strict=True)
            )
            sums = sums - surplus
        return np.asarray(sums, dtype=np.int64)


def lay_out(
    weight_codes: ArrayLike,
    bits: ArrayLike,
    patterns: int | Iterable[int | Pattern] = 4,
    *,
    mask: ArrayLike | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    signed: bool = True,
) -> MachineLayer:
    """Lays out a layer of codes in registers: channels by precision, the widest first.

    Args:
        weight_codes: (outputs, channels) or (outputs, channels, height, width).
        bits: (channels,) 1, 2 or 4; 0 for a channel that has left the layer.
        patterns: those there are, as in ``pattern_set``. Codes are final, so that no channel is
            promoted: each width needs slots of its own.
        mask: which weights there are, of the shape of the codes; all if not given.
        stride: of a convolution.
        padding: zeros around the image.
        dilation: of a convolution.
        signed: whether inputs are symmetric, or never negative with values
            ``(2u + 1) 2^(1 - p)``.

    Raises:
        RequestError: other shapes, bits or codes, or no patterns with slots for them.
    """
    codes = np.asarray(weight_codes)
    if codes.ndim not in (2, 4) or codes.dtype.kind not in "iu":
        given = f"{codes.dtype} of shape {codes.shape}"
        raise invalid("weight_codes", given, "integers, (outputs, channels[, height, width])")
    width = np.asarray(bits)
    if width.shape != codes.shape[1:2] or not np.isin(width, (0, 1, 2, 4)).all():
        given = f"{sorted(set(width.ravel().tolist()))} of shape {width.shape}"
        raise invalid("bits", given, f"0, 1, 2 or 4 for each of {codes.shape[1]} channels")
    kept = None if mask is None else np.asarray(mask)
    if kept is not None and (kept.shape != codes.shape or kept.dtype != np.bool_):
        raise invalid("mask", f"{kept.dtype} of shape {kept.shape}", f"bool of {codes.shape}")
    width = width.astype(np.uint8)
    if kept is not None:
        # A channel without weights leaves the layer.
        width = np.where(kept.any(axis=(0, *range(2, codes.ndim))), width, 0).astype(np.uint8)
    wide = width.astype(np.int64).reshape(-1, *(1,) * (codes.ndim - 2))
    if ((codes < 0) | ((codes.astype(np.int64) >> wide > 0) & (wide > 0))).any():
        raise invalid("weight_codes", f"{codes.min()} to {codes.max()}", "codes of the bits")
    taps = int(np.prod(codes.shape[2:], dtype=np.int64))
    if taps < 1:
        raise invalid("weight_codes", codes.shape, "a kernel of at least one tap")
    fit = fit_channels(width.tolist(), patterns, taps=taps, promote=False)
    vector_patterns = np.repeat(
        np.array([index for index, _ in fit.uses], dtype=np.int64),
        np.array([times for _, times in fit.uses], dtype=np.int64),
    )
    elements = _elements(width, taps, vector_patterns)
    flat = codes.astype(np.int64).reshape(len(codes), len(width) * taps)
    dimensions = codes.ndim - 2
    return MachineLayer(
        weight_codes=codes.astype(np.uint8),
        bits=width,
        mask=kept,
        fit=fit,
        vector_patterns=vector_patterns,
        elements=elements,
        weight_registers=_registers(flat, elements, vector_patterns),
        mask_registers=None if kept is None else _mask_registers(kept, elements),
        stride=_pair("stride", stride, 1, dimensions),
        padding=_pair("padding", padding, 0, dimensions),
        dilation=_pair("dilation", dilation, 1, dimensions),
        signed=bool(signed),
    )


def reference_accumulators(layer: MachineLayer, inputs: ArrayLike) -> NDArray[np.int32]:
    """The accumulators of a layer by plain sums that skip taps outside the image.

    Args:
        layer: laid out.
        inputs: codes, (samples, channels[, height, width]).

    Returns:
        (samples, outputs[, height, width]) int32, which wrap around.
    """
    codes = np.asarray(inputs)
    columns, outside = layer.columns(codes)
    bits = np.repeat(layer.bits.astype(np.int64), layer.taps)
    read = bits > 0
    width = bits[read]
    weights = 2 * layer.weight_codes.reshape(layer.outputs, len(bits))[:, read].astype(np.int64)
    weights = weights - (2**width - 1)
    if layer.mask is not None:
        weights = weights * layer.mask.reshape(layer.outputs, len(bits))[:, read]
    shift = 2**width - 1 if layer.signed else -1
    inside = np.tile(~outside, (1, len(layer.bits)))[:, read]
    numbers = (2 * columns[:, read] - shift) * inside * 4 ** (4 - width)
    total = (numbers @ weights.T + (1 << 31)) % (1 << 32) - (1 << 31)
    return by_sample(total.astype(np.int32), layer, codes.shape)


def by_sample(
    sums: NDArray[np.int32], layer: MachineLayer, inputs: Sequence[int]
) -> NDArray[np.int32]:
    """Accumulators (positions, outputs) as (samples, outputs[, height, width])."""
    size = layer.output_size(inputs)
    shaped = sums.reshape(inputs[0], *size, layer.outputs)
    return np.ascontiguousarray(np.moveaxis(shaped, -1, 1))


def _elements(
    bits: NDArray[np.uint8], taps: int, vector_patterns: NDArray[np.int64]
) -> tuple[NDArray[np.int64], ...]:
    """Deals the elements of each width out to the slots of that width, in order."""
    waiting = {
        p: np.concatenate(
            [
                np.arange(channel * taps, (channel + 1) * taps)
                for channel in np.flatnonzero(bits == p)
            ]
            or [np.zeros(0, dtype=np.int64)]
        )
        for p in MULTIPLIERS
    }
    dealt = []
    for pattern in vector_patterns:
        widths = element_layout(int(pattern)).bits
        slots = np.full(len(widths), _PADDED, dtype=np.int64)
        for p, elements in waiting.items():
            places = np.flatnonzero(widths == p)[: len(elements)]
            slots[places] = elements[: len(places)]
            waiting[p] = elements[len(places) :]
        dealt.append(slots)
    return tuple(dealt)


def _registers(
    columns: NDArray[np.int64],
    elements: Sequence[NDArray[np.int64]],
    vector_patterns: NDArray[np.int64],
) -> NDArray[np.uint8]:
    registers = np.zeros((len(columns), len(elements), REGISTER_BYTES), dtype=np.uint8)
    for vector, (slots, pattern) in enumerate(zip(elements, vector_patterns, strict=True)):
        codes = np.where(slots == _PADDED, 0, columns[:, slots])
        registers[:, vector] = pack_registers(codes, int(pattern))
    return registers


def _mask_registers(
    mask: NDArray[np.bool_], elements: Sequence[NDArray[np.int64]]
) -> NDArray[np.uint8]:
    flat = mask.reshape(len(mask), int(np.prod(mask.shape[1:])))
    bits = np.zeros((len(mask), len(elements), 8 * REGISTER_BYTES), dtype=np.uint8)
    for vector, slots in enumerate(elements):
        bits[:, vector, : len(slots)] = (slots != _PADDED) & flat[:, slots]
    return np.packbits(bits, axis=-1, bitorder="little")


def _pair(name: str, value: int | Sequence[int], least: int, dimensions: int) -> tuple[int, int]:
    expected = f"a whole number or two, {least} or more"
    try:
        numbers = (
            [operator.index(number) for number in value]
            if isinstance(value, Sequence)
            else [operator.index(value)] * 2
        )
    except TypeError:
        raise invalid(name, value, expected) from None
    if len(numbers) != 2 or min(numbers) < least:
        raise invalid(name, value, expected)
    if not dimensions and numbers != [least, least]:
        raise invalid(name, value, f"{least} for a linear layer")
    return numbers[0], numbers[1]
