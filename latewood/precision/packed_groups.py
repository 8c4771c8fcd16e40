"""Convolutions of packed codes in groups, and along one axis."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latewood.errors import invalid
from latewood.kernels.mixed_products import Affine, CodeWeights, PreparedProduct, Taps, taps_of
from latewood.precision.packed_layers import PackedConv2d, PackedImageLayer

__all__ = ["PackedConv1d", "PackedGroupedConv2d", "folded", "unfolded"]


def folded(weights: Tensor, groups: int) -> Tensor:
    """Weights of groups side by side: all input channels along the second axis.

    Args:
        weights: (outputs, channels / groups, ...), as torch has them.
        groups: of the convolution.

    Returns:
        (outputs / groups, channels, ...).
    """
    outputs, channels = weights.shape[:2]
    apart = weights.reshape(groups, outputs // groups, *weights.shape[1:]).transpose(0, 1)
    return apart.reshape(outputs // groups, groups * channels, *weights.shape[2:])


def unfolded(weights: Tensor, groups: int) -> Tensor:
    """The inverse of ``folded``."""
    outputs, channels = weights.shape[:2]
    apart = weights.reshape(outputs, groups, channels // groups, *weights.shape[2:])
    return apart.transpose(0, 1).reshape(outputs * groups, channels // groups, *weights.shape[2:])


class PackedGroupedConv2d(PackedImageLayer):
    """A convolution in groups, of packed codes; each group reads channels of its own.

    Groups of several channels are multiplied by the kernels of ``PackedConv2d``, one after the
    other. Those of one channel (depthwise) are sums over taps in plain torch, in integers as well.

    Args:
        codes: uint8, (outputs, channels / groups, rows, columns), as torch has weights.
        bits: uint8, (channels,).
        scale: (outputs,).
        groups: 2 or more, which divide outputs and channels.
        stride: as of ``nn.Conv2d``.
        padding: likewise.
        dilation: likewise.
        mask: bool, of the shape of ``codes``; None: all weights are there.
        others: of ``PackedLayer``.

    Raises:
        RequestError: shapes, types or bits that do not fit.
    """

    kind = "groups"

    def __init__(
        self,
        codes: Tensor,
        bits: Tensor,
        scale: Tensor,
        *,
        groups: int,
        stride: int | tuple[int, int] = 1,
        padding: int | str | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        mask: Tensor | None = None,
        **others: Any,
    ) -> None:
        if codes.dim() != 4 or 0 in codes.shape[1:]:
            raise invalid("codes", tuple(codes.shape), "(outputs, channels, rows, columns)")
        if isinstance(groups, bool) or not isinstance(groups, int) or groups < 2:
            raise invalid("groups", groups, "a whole number, 2 or more")
        if len(codes) % groups:
            raise invalid("groups", groups, f"a divisor of {len(codes)} outputs")
        if isinstance(mask, Tensor) and mask.shape != codes.shape:
            raise invalid("mask", tuple(mask.shape), f"{tuple(codes.shape)}")
        super().__init__(
            *(folded(codes, groups), bits, scale),
            groups=groups,
            mask=None if mask is None else folded(mask, groups),
            **others,
        )
        self.taps = taps_of((codes.shape[2], codes.shape[3]), padding, stride, dilation)

    @property
    def tap_numbers(self) -> list[int]:
        """The ``taps`` of ``of_buffers``."""
        taps = self.taps
        return [*taps.stride, *taps.padding, *taps.after, *taps.dilation, self.groups]

    def make_ready(self) -> None:
        """Prepares the products of integers, as the first call would."""
        if self.quantises_inputs:
            self._prepared_groups()

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.groups} groups"

    def _laid_out(self, weights: Tensor) -> Tensor:
        return unfolded(weights, self.groups)

    def _product(self, inputs: Tensor) -> Tensor:
        taps = self.taps
        around = (taps.padding[1], taps.after[1], taps.padding[0], taps.after[0])
        if not self.quantises_inputs:
            weight, bias = self._float_weight().to(inputs.dtype), self.bias.to(inputs.dtype)
            padded = F.pad(inputs, around)
            return F.conv2d(padded, weight, bias, taps.stride, 0, taps.dilation, self.groups)
        parts = self._prepared_groups()
        if isinstance(parts, list):
            each = self.shape[1] // self.groups
            made = [
                self._of_group(product, affine, given)
                for (product, affine), given in zip(parts, inputs.split(each, 1), strict=True)
            ]
            return torch.cat(made, 1)
        weights, affine = parts
        kernel = (self.shape[2], self.shape[3])
        sizes = taps.output_sizes((inputs.shape[2], inputs.shape[3]), kernel)
        numbers = weights.grid_inputs(self._input_codes(inputs), 1).to(torch.int32)
        sums = depthwise_sums(weights, F.pad(numbers, around), taps, sizes)
        return self._scaled(sums, affine, inputs)

    def _of_group(self, product: PreparedProduct, affine: Affine, inputs: Tensor) -> Tensor:
        result = product.numbers(inputs, self.taps, affine)
        if result is not None:
            return result
        codes = self._input_codes(inputs, product.weights.input_bits)
        return self._scaled(product.sums(codes, self.taps), affine, inputs)

    def _prepared_groups(
        self,
    ) -> list[tuple[PreparedProduct, Affine]] | tuple[CodeWeights, Affine]:
        """A product a group; of groups of one channel the weights of all."""
        if not self._current(self._cache):
            codes, mask = self.codes(), self.mask()
            if self.shape[1] == self.groups:
                mask = None if mask is None else folded(mask, self.groups)
                everything = slice(None)
                prepared: Any = self._part(folded(codes, self.groups), mask, everything, everything)
            else:
                channels, outputs = self.shape[1] // self.groups, self.shape[0]
                prepared = []
                for group in range(self.groups):
                    rows = slice(group * outputs, (group + 1) * outputs)
                    columns = slice(group * channels, (group + 1) * channels)
                    kept = None if mask is None else mask[rows]
                    weights, affine = self._part(codes[rows], kept, columns, rows)
                    prepared.append((PreparedProduct(weights), affine))
            self._cache = (self._marks(), prepared)
        assert self._cache is not None
        result: list[tuple[PreparedProduct, Affine]] | tuple[CodeWeights, Affine] = self._cache[1]
        return result

    def _part(
        self, codes: Tensor, mask: Tensor | None, channels: slice, outputs: slice
    ) -> tuple[CodeWeights, Affine]:
        bits, input_bits = self.weight_bits.cpu()[channels], self.input_bits.cpu()[channels]
        weights = CodeWeights(codes, bits, input_bits, mask, self.never_negative)
        unit = weights.unit * float(self.input_scale)
        scale = (self.weight_scale.cpu().double()[outputs] * unit).float().contiguous()
        shift = 2.0 if self.never_negative else 0.0
        bias = self.bias.cpu()[outputs].contiguous()
        return weights, Affine(float(self.input_scale), shift, scale, bias)


def depthwise_sums(
    weights: CodeWeights, padded: Tensor, taps: Taps, sizes: tuple[int, int]
) -> Tensor:
    """Sums over the taps of each channel alone.

    Args:
        weights: (outputs a channel, channels, rows, columns).
        padded: int32 numbers of the grid, (images, channels, height, width), zeros around them.
        taps: where taps lie.
        sizes: rows and columns of the output.

    Returns:
        int32, (images, channels * outputs a channel, rows, columns).
    """
    matrix = weights.grid_weights().to(padded.device, torch.int32).transpose(0, 1)
    each, (rows, columns) = matrix.shape[1], sizes
    sums = padded.new_zeros((len(padded), padded.shape[1], each, rows, columns))
    for i in range(matrix.shape[2]):
        for j in range(matrix.shape[3]):
            top, left = i * taps.dilation[0], j * taps.dilation[1]
            met = padded[
                :,
                :,
                None,
                top : top + (rows - 1) * taps.stride[0] + 1 : taps.stride[0],
                left : left + (columns - 1) * taps.stride[1] + 1 : taps.stride[1],
            ]
            sums += met * matrix[:, :, i, j, None, None]
    return sums.flatten(1, 2)


class PackedConv1d(nn.Module):
    """A convolution along one axis: one over images of one column.

    Args:
        layer: the convolution, whose kernel has one column.
    """

    def __init__(self, layer: PackedConv2d | PackedGroupedConv2d) -> None:
        super().__init__()
        if layer.shape[3] != 1:
            raise invalid("layer", f"{layer.shape[3]} columns", "a kernel of one column")
        self.layer = layer

    def forward(self, inputs: Tensor) -> Tensor:
        """The outputs, of the dtype of the inputs.

        Args:
            inputs: floating, (sequences, channels, length), or one sequence without its axis.

        Raises:
            RequestError: another number of channels, a kernel that is longer than the sequence,
                NaN.
        """
        if inputs.dim() not in (2, 3):
            raise invalid("inputs", tuple(inputs.shape), "(sequences, channels, length)")
        result: Tensor = self.layer(inputs[..., None])
        return result[..., 0]
