"""A packed layer as numbers of its grid: what is multiplied, by how much, and what is added."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latewood.errors import invalid
from latewood.precision.packed_groups import folded, unfolded
from latewood.precision.packed_layers import PackedLayer

__all__ = ["GridLayer", "StoredWeights", "grid_layer", "stored_weights"]

_STORED: Final = (2, 4, 8, 16)


@dataclass(frozen=True)
class GridLayer:
    """The channels that a packed layer reads.

    Args:
        channels: of the input, int64, (K,), in the order of the others.
        all_channels: whether these are all, in their order.
        codes: int64, (outputs, K, ...).
        bits: of the weights, int64, (K,).
        present: which weights are there, bool, of the shape of ``codes``.
        input_bits: int64, (K,); None for inputs as they are.
        input_scale: float32.
        never_negative: whether an input of code u stands for (2u + 1) 2^(1 - p).
        scale: what the sums of products of grid numbers are multiplied by, float32, (outputs,).
        bias: float32, (outputs,).
        taps: of ``PackedLayer``.
        groups: of a convolution; ``codes`` and ``present`` are then (outputs / groups, K, ...).
    """

    channels: NDArray[np.int64]
    all_channels: bool
    codes: NDArray[np.int64]
    bits: NDArray[np.int64]
    present: NDArray[np.bool_]
    input_bits: NDArray[np.int64] | None
    input_scale: np.float32
    never_negative: bool
    scale: NDArray[np.float32]
    bias: NDArray[np.float32]
    taps: list[int]
    groups: int = 1

    @property
    def axes(self) -> tuple[int, ...]:
        """The shape of something by channel beside weights."""
        return (1, -1, *(1,) * (self.codes.ndim - 2))

    def laid_out(self, weights: NDArray[Any]) -> NDArray[Any]:
        """Weights as other programs have them: transposed matrices, groups one after the other."""
        if weights.ndim == 2:
            return np.ascontiguousarray(weights.T)
        if self.groups == 1:
            return weights
        return np.ascontiguousarray(unfolded(torch.from_numpy(weights), self.groups).numpy())

    def grid(self) -> NDArray[np.float32]:
        """The weights as numbers of the grid, 0 where there is none."""
        bits = self.bits.reshape(self.axes)
        odd = 2 * self.codes - (2**bits - 1)
        return np.where(self.present, odd * 2.0 ** (1 - bits), 0).astype(np.float32)


@dataclass(frozen=True)
class StoredWeights:
    """Weights as signed integers: a weight is ``(number + half) * step`` of its channel.

    Args:
        numbers: int64, (outputs, K, ...).
        half: 1/2, or 0 where some weights are not there, which the grid has no number for.
        step: float32, (K,).
        bits: 2, 4, 8 or 16, into which the numbers fit.
    """

    numbers: NDArray[np.int64]
    half: float
    step: NDArray[np.float32]
    bits: int


def grid_layer(layer: PackedLayer, name: str, *, by_width: bool = False) -> GridLayer:
    """The numbers of a packed layer.

    Args:
        layer: any.
        name: its name, for messages.
        by_width: sort channels by the bits of weights and inputs.

    Raises:
        RequestError: the layer has no weights, or several widths in groups that cannot be sorted.
    """
    groups = layer.groups
    codes = folded(layer.codes(), groups)
    if not codes.numel():
        raise invalid("packed", f"the layer {name!r} of shape {tuple(codes.shape)}", "weights")
    bits = layer.weight_bits.cpu().to(torch.int64)
    mask = layer.mask()
    present = torch.ones(codes.shape, dtype=torch.bool) if mask is None else folded(mask, groups)
    inputs = layer.input_bits.cpu().to(torch.int64) if layer.quantises_inputs else None
    kept = bits.nonzero()[:, 0]
    if not len(kept):
        # A sum of nothing is no operation: one channel, of which no weight is there.
        kept = kept.new_zeros(1)
        bits, present = torch.ones_like(bits), torch.zeros_like(present)
        inputs = None if inputs is None else torch.ones_like(inputs)
    if groups > 1:
        # Groups have channels at fixed places; where one has left, no weight is there.
        present = present & (bits > 0).reshape(1, -1, 1, 1)
        bits = bits.clamp(min=1)
        inputs = None if inputs is None else inputs.clamp(min=1)
        kept = torch.arange(len(bits))
    if by_width:
        width = bits if inputs is None else 16 * inputs + bits
        if groups > 1 and len(torch.unique(width)) > 1:
            raise invalid(
                "packed", f"the layer {name!r} of several widths in groups", "one width for QONNX"
            )
        kept = kept[torch.argsort(width[kept], descending=True, stable=True)]
    scale = layer.weight_scale.cpu().double()
    if inputs is not None:
        scale = scale * float(layer.input_scale)
    return GridLayer(
        channels=kept.numpy(),
        all_channels=kept.tolist() == list(range(len(bits))),
        codes=_numbers(codes[:, kept].to(torch.int64)),
        bits=bits[kept].numpy(),
        present=_numbers(present[:, kept]),
        input_bits=None if inputs is None else inputs[kept].numpy(),
        input_scale=np.float32(float(layer.input_scale)),
        never_negative=layer.never_negative,
        scale=_numbers(scale.float()),
        bias=_numbers(layer.bias.cpu().float()),
        taps=layer.tap_numbers[:8],
        groups=groups,
    )


def stored_weights(layer: GridLayer, least: int) -> StoredWeights:
    """The fewest bits for the weights of a layer.

    A grid has no zero, but numbers at odd multiples of half a step. Without pruned weights the half
    is left to be added; with them, the number is the odd multiple itself.

    Args:
        layer: of ``grid_layer``.
        least: the fewest bits that there are.
    """
    bits = layer.bits.reshape(layer.axes)
    if bool(layer.present.all()):
        numbers, half, step = layer.codes - 2 ** (bits - 1), 0.5, 2.0 ** (2 - layer.bits)
    else:
        odd = 2 * layer.codes - (2**bits - 1)
        numbers, half, step = odd * layer.present, 0.0, 2.0 ** (1 - layer.bits)
    fitting = (
        count
        for count in _STORED
        if count >= least
        and numbers.min() >= -(2 ** (count - 1))
        and numbers.max() < 2 ** (count - 1)
    )
    return StoredWeights(numbers, half, step.astype(np.float32), next(fitting))


def _numbers(tensor: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = np.ascontiguousarray(tensor.detach().numpy())
    return array
