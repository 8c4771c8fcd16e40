"""What the steps of an integer network compute, in plain torch: the oracle of its executors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from latewood.kernels.mixed_products import not_numbers, reference_products
from latewood.precision.code_thresholds import encoded
from latewood.precision.fused_arithmetic import fused_multiply_add
from latewood.precision.integer_network import (
    Buffer,
    Elementwise,
    Encoder,
    Epilogue,
    Flatten,
    FloatProduct,
    IntegerNetwork,
    PackedProduct,
    Pool,
)

__all__ = ["reference_run"]


def reference_run(network: IntegerNetwork, inputs: Tensor) -> Tensor:
    """The outputs of a network, step by step.

    Args:
        network: what to run.
        inputs: float32, (images, channels, rows, columns) or (images, channels).

    Returns:
        float32, (images, channels) or (images, channels, rows, columns).

    Raises:
        RequestError: NaN where codes are formed.
    """
    buffers: dict[int, Tensor] = {
        network.source: inputs.reshape(-1, *network.buffers[network.source].shape)
    }
    for step in network.steps:
        if isinstance(step, Flatten):
            buffers[step.target] = buffers[step.source].flatten(1)[:, :, None, None]
            continue
        source = buffers[step.source]
        sums: Tensor | None = None
        if isinstance(step, PackedProduct):
            sums = reference_products(step.weights, source, step.taps)
            numbers = sums.float() * _by_channel(step.scale) + _by_channel(step.bias)
        elif isinstance(step, FloatProduct):
            numbers = _float_product(step, source)
        elif isinstance(step, Pool):
            numbers = _pooled(step, source)
        else:
            assert isinstance(step, Elementwise)
            numbers = source
        _finish(step.epilogue, numbers, sums, network.buffers, buffers)
    outputs = buffers[network.target]
    return outputs.flatten(1) if network.output_axes == 2 else outputs


def _finish(
    epilogue: Epilogue,
    numbers: Tensor,
    sums: Tensor | None,
    described: tuple[Buffer, ...],
    buffers: dict[int, Tensor],
) -> None:
    if epilogue.factor is not None and epilogue.addend is not None:
        numbers = fused_multiply_add(
            numbers, _by_channel(epilogue.factor), _by_channel(epilogue.addend)
        )
    if epilogue.residual is not None:
        numbers = numbers + buffers[epilogue.residual]
    if epilogue.low is not None:
        numbers = numbers.clamp_min(epilogue.low)
    if epilogue.high is not None:
        numbers = numbers.clamp_max(epilogue.high)
    if epilogue.target is not None:
        buffers[epilogue.target] = numbers
    for encoder in epilogue.encoders:
        bits = described[encoder.target].bits
        assert bits is not None
        if encoder.thresholds is not None:
            assert sums is not None
            buffers[encoder.target] = _counted(encoder, sums, bits)
            continue
        if bool(numbers[:, bits > 0].isnan().any()):
            raise not_numbers()
        buffers[encoder.target] = encoded(numbers, encoder.alpha, encoder.offset, bits)


def _counted(encoder: Encoder, sums: Tensor, bits: Tensor) -> Tensor:
    assert encoder.thresholds is not None and encoder.signs is not None
    signed = sums.long() * _by_channel(encoder.signs)
    codes = torch.zeros_like(signed)
    for place in range(encoder.thresholds.shape[1]):
        counts = _by_channel((1 << bits.long()) - 1 > place)
        codes += (signed >= _by_channel(encoder.thresholds[:, place])) & counts
    return codes.to(torch.uint8)


def _float_product(step: FloatProduct, source: Tensor) -> Tensor:
    taps, groups = step.taps, step.groups
    padded = F.pad(source, (taps.padding[1], taps.after[1], taps.padding[0], taps.after[0]))
    outputs, channels, height, width = step.weight.shape
    rows, columns = taps.output_sizes((source.shape[2], source.shape[3]), (height, width))
    sums = source.new_zeros((len(source), groups, outputs // groups, rows, columns))
    weight = step.weight.reshape(groups, outputs // groups, channels, height, width)
    split = padded.reshape(len(source), groups, channels, *padded.shape[2:])
    for c in range(channels):
        for i in range(height):
            for j in range(width):
                top, left = i * taps.dilation[0], j * taps.dilation[1]
                met = split[
                    :,
                    :,
                    c,
                    top : top + (rows - 1) * taps.stride[0] + 1 : taps.stride[0],
                    left : left + (columns - 1) * taps.stride[1] + 1 : taps.stride[1],
                ]
                sums = sums + met[:, :, None] * weight[:, :, c, i, j, None, None]
    numbers = sums.reshape(len(source), outputs, rows, columns)
    return numbers if step.bias is None else numbers + _by_channel(step.bias)


def _pooled(step: Pool, source: Tensor) -> Tensor:
    taps = step.taps
    if step.kind == "mean":
        flat = source.flatten(2)
        count = flat.shape[2]
        parts = F.pad(flat, (0, -count % 8)).reshape(*flat.shape[:2], -1, 8)
        sums = parts[:, :, 0]
        for place in range(1, parts.shape[2]):
            sums = sums + parts[:, :, place]
        for width in (4, 2, 1):
            sums = sums[..., :width] + sums[..., width:]
        return (sums / count)[..., None]
    if step.kind == "max":
        result: Tensor = F.max_pool2d(source, step.kernel, taps.stride, taps.padding, taps.dilation)
        return result
    return F.avg_pool2d(
        source,
        step.kernel,
        taps.stride,
        taps.padding,
        count_include_pad=step.counts_padding,
        divisor_override=step.divisor,
    )


def _by_channel(values: Tensor) -> Tensor:
    return values.reshape(-1, 1, 1)
