"""From a finished plain layer with number formats to a packed one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from latewood.core.selection import is_hugging_face_conv1d
from latewood.errors import RequestError
from latewood.precision.formats import InputFormat, QuantizeInput, input_format, weight_format
from latewood.precision.packed_groups import (
    PackedConv1d,
    PackedGroupedConv2d,
    folded,
    unfolded,
)
from latewood.precision.packed_layers import PackedConv2d, PackedLayer, PackedLinear

__all__ = ["packed_layer"]


def packed_layer(layer: nn.Module) -> PackedLayer | PackedConv1d:
    """The packed form of a finished layer.

    Pruned weights stay exactly 0, by a mask; a channel without any weight leaves the layer.

    Args:
        layer: ``nn.Linear``, ``nn.Conv1d``, ``nn.Conv2d`` or Hugging Face's ``Conv1D``, with the
            format of its weight and, for integer products, that of its input.

    Returns:
        A packed layer of the same values on the CPU.

    Raises:
        RequestError: the layer has no packed form; the message says why.
    """
    transposed = is_hugging_face_conv1d(layer)
    if type(layer) not in (nn.Linear, nn.Conv1d, nn.Conv2d) and not transposed:
        alone = isinstance(layer, (nn.LSTM, nn.GRU))
        hint = f" in a whole network; Packed{type(layer).__name__}.of makes one" if alone else ""
        raise RequestError(f"{type(layer).__name__} has no packed form{hint}")
    grid = weight_format(layer)
    if grid is None:
        raise RequestError("its weight has no number format")
    convolution = layer if isinstance(layer, (nn.Conv1d, nn.Conv2d)) else None
    if convolution is not None and convolution.padding_mode != "zeros":
        what = f"{convolution.padding_mode} padding"
        raise RequestError(f"a convolution with {what} has no packed form")
    foreign = [
        hook for hook in layer._forward_pre_hooks.values() if not isinstance(hook, QuantizeInput)
    ]
    if foreign or layer._forward_hooks:
        raise RequestError("it has hooks of others")
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if not grid.holds(weight):
        raise RequestError("its weight has left the grid of its number format since it was fixed")
    codes, kept = grid.codes(weight).cpu(), grid.kept(weight).cpu()
    bits, scale = (
        part.detach().cpu().expand(weight.shape).contiguous() for part in (grid.bits, grid.scale)
    )
    if transposed:
        codes, kept, bits, scale = (x.t().contiguous() for x in (codes, kept, bits, scale))
    if not codes.numel():
        raise RequestError("it has no weights")
    if isinstance(layer, nn.Conv1d):
        codes, kept, bits, scale = (x[..., None] for x in (codes, kept, bits, scale))
    groups = 1 if convolution is None else convolution.groups
    if groups > 1:
        # All input channels side by side; the scale is one an output, whichever group it is in.
        bits = folded(bits, groups)
    by_channel, by_output = bits[:1].clone(), scale[:, :1].clone()
    while by_channel.dim() > 2:
        by_channel, by_output = by_channel[..., 0], by_output[..., 0]
    axes = (1,) * (bits.dim() - 2)
    if not bool((bits == by_channel.reshape(1, -1, *axes)).all()):
        raise RequestError("its bits differ within an input channel")
    if not bool((scale == by_output.reshape(-1, 1, *axes)).all()):
        raise RequestError("its scale differs within an output channel")
    channel_bits = by_channel[0]
    reads = folded(kept, groups).transpose(0, 1).flatten(1).any(1)
    channel_bits = torch.where(reads, channel_bits, 0)
    inputs = input_format(layer)
    input_bits = None
    if inputs is not None:
        input_bits = _input_bits(inputs, len(channel_bits))
        channel_bits = torch.where(input_bits > 0, channel_bits, 0)
        input_bits = torch.where(channel_bits > 0, input_bits, 0)
    bias = layer.bias
    others: dict[str, Any] = {
        "input_bits": input_bits,
        "input_scale": 1.0 if inputs is None else float(inputs.scale),
        "never_negative": inputs is not None and not bool(inputs.signed),
        "mask": kept,
        "bias": bias if isinstance(bias, Tensor) else None,
    }
    codes = folded(codes, groups) * (channel_bits > 0).reshape(1, -1, *axes)
    codes = unfolded(codes, groups)
    numbers = by_output[:, 0].float()
    if convolution is None:
        return PackedLinear(codes, channel_bits, numbers, **others)
    others |= {
        "stride": _both(convolution.stride, 1),
        "padding": convolution.padding
        if isinstance(convolution.padding, str)
        else _both(convolution.padding, 0),
        "dilation": _both(convolution.dilation, 1),
    }
    made: PackedConv2d | PackedGroupedConv2d
    if groups > 1:
        made = PackedGroupedConv2d(codes, channel_bits, numbers, groups=groups, **others)
    else:
        made = PackedConv2d(codes, channel_bits, numbers, **others)
    return PackedConv1d(made) if isinstance(layer, nn.Conv1d) else made


def _input_bits(inputs: InputFormat, channels: int) -> Tensor:
    return inputs.bits.detach().cpu().reshape(-1).expand(channels).contiguous()


def _both(numbers: tuple[int, ...], other: int) -> tuple[int, int]:
    """For rows and columns; a sequence has one column."""
    return numbers[0], numbers[1] if len(numbers) > 1 else other
