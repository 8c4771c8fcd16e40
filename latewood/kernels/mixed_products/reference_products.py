"""Products of codes in plain torch: the oracle, and a form with 8-bit integers."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from latewood.kernels.mixed_products.code_products import CodeWeights, Taps

__all__ = ["byte_products", "reference_products"]


def reference_products(weights: CodeWeights, input_codes: Tensor, taps: Taps) -> Tensor:
    """The sums of products of codes, on any device.

    They are at most 2^31, so that float64 holds every partial sum exactly.

    Args:
        weights: what to multiply with.
        input_codes: uint8, (images, channels, height, width).
        taps: where the kernel's taps lie; what they meet outside the image counts nothing.

    Returns:
        int32, (images, outputs, rows, columns).
    """
    inputs = weights.grid_inputs(input_codes, 1).to(torch.float64)
    matrix = weights.grid_weights().to(input_codes.device, torch.float64).flatten(1)
    sums = matrix @ _columns(inputs, weights, taps)
    rows, columns = taps.output_sizes(_sizes(input_codes), _kernel(weights))
    return sums.to(torch.int32).reshape(*sums.shape[:2], rows, columns)


def byte_products(weights: CodeWeights, input_codes: Tensor, taps: Taps) -> Tensor:
    """The same by torch's product of 8-bit integers, on the CPU, for bits up to 4.

    All widths lie on one grid of 8-bit integers, in the unit of the widest.
    """
    inputs = weights.grid_inputs(input_codes, 1).to(torch.float32)
    matrix = weights.grid_weights().flatten(1).to(torch.int8)
    rows, columns = taps.output_sizes(_sizes(input_codes), _kernel(weights))
    folded = _columns(inputs, weights, taps).to(torch.int8)
    sums = [torch._int_mm(image.t().contiguous(), matrix.t()).t() for image in folded]
    return torch.stack(sums).reshape(len(sums), -1, rows, columns)


def _columns(inputs: Tensor, weights: CodeWeights, taps: Taps) -> Tensor:
    padded = F.pad(inputs, (taps.padding[1], taps.after[1], taps.padding[0], taps.after[0]))
    if _kernel(weights) == (1, 1):
        return padded[:, :, :: taps.stride[0], :: taps.stride[1]].flatten(2)
    return F.unfold(padded, _kernel(weights), dilation=taps.dilation, stride=taps.stride)


def _sizes(codes: Tensor) -> tuple[int, int]:
    return codes.shape[2], codes.shape[3]


def _kernel(weights: CodeWeights) -> tuple[int, int]:
    return weights.codes.shape[2], weights.codes.shape[3]
