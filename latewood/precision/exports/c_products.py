"""Products of codes in C: weights packed by width, and the loops that multiply them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from latewood.kernels.mixed_products import CodeWeights
from latewood.precision.exports.c_tables import Tables

__all__ = ["WidthRun", "packed_runs"]


@dataclass(frozen=True)
class WidthRun:
    """The channels of a layer whose weights and inputs have the same bits.

    Args:
        order: name of a table of the channels, or "" if they are all in order.
        count: of the channels.
        bits: of the weights in memory, 1, 2, 4 or 8.
        top: the largest code of a weight.
        weights: name of the table of packed codes, output by output.
        mask: likewise of bits that say which weights are there; "" if all are.
        begin: of these channels' inputs in those of a position.
        length: of these inputs at all taps, a multiple of 8.
        filled: how many of them are there.
        base: an input of code u is ``(2 u - base) * gain``.
        gain: see there.
        factor: what sums count in the unit of the whole product.
    """

    order: str
    count: int
    bits: int
    top: int
    weights: str
    mask: str
    begin: int
    length: int
    filled: int
    base: int
    gain: int
    factor: int

    @property
    def bytes(self) -> int:
        """Of the weights of one output."""
        return self.length * self.bits // 8


def packed_runs(weights: CodeWeights, tables: Tables) -> list[WidthRun]:
    """Writes the weights of a layer into tables.

    Args:
        weights: codes (outputs, channels, rows, columns), bits and mask.
        tables: to which they are added.
    """
    bits, inputs = weights.bits.to(torch.int64), weights.input_bits.to(torch.int64)
    taps = weights.codes.shape[2] * weights.codes.shape[3]
    widest, widest_input = int(bits.max()), int(inputs.max())
    runs: list[WidthRun] = []
    begin = 0
    pairs = sorted({pair for pair in zip(bits.tolist(), inputs.tolist(), strict=True) if pair[0]})
    for width, input_width in reversed(pairs):
        channels = ((bits == width) & (inputs == input_width)).nonzero()[:, 0]
        filled = len(channels) * taps
        length = -(-filled // 8) * 8
        stored = next(count for count in (1, 2, 4, 8) if count >= width)
        mask = ""
        if weights.mask is not None:
            mask = tables.add(_stream(_flat(weights.mask, channels, length), 1))
        runs.append(
            WidthRun(
                order=""
                if len(channels) == len(bits)
                else tables.add(channels.numpy().astype(np.uint16)),
                count=len(channels),
                bits=stored,
                top=(1 << width) - 1,
                weights=tables.add(_stream(_flat(_kept(weights), channels, length), stored)),
                mask=mask,
                begin=begin,
                length=length,
                filled=filled,
                base=-1 if weights.never_negative else (1 << input_width) - 1,
                gain=1 << (widest_input - input_width),
                factor=1 << (widest - width),
            )
        )
        begin += length
    return runs


def _kept(weights: CodeWeights) -> torch.Tensor:
    return weights.codes if weights.mask is None else weights.codes * weights.mask


def _flat(values: torch.Tensor, channels: torch.Tensor, length: int) -> NDArray[np.uint8]:
    """(outputs, length): taps, then channels, then zeros."""
    chosen = values[:, channels].flatten(2).transpose(1, 2).flatten(1).to(torch.uint8).numpy()
    return np.pad(chosen, ((0, 0), (0, length - chosen.shape[1])))


def _stream(values: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    each = 8 // bits
    parts = values.reshape(len(values), -1, each)
    packed = np.zeros(parts.shape[:2], np.uint8)
    for place in range(each):
        packed |= parts[..., place] << (bits * place)
    return packed
