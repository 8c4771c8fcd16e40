"""Bare calls of the compiled products of codes; whoever calls has checked what goes in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from latewood.kernels.mixed_products.code_products import CodeWeights, Taps

__all__ = ["Affine", "lay_out", "multiply"]


class Affine:
    """What becomes of numbers that go in, and of sums that come out.

    Inputs become codes of ``numbers / alpha - shift``; sums become ``sum * scale + bias``.

    Args:
        alpha: scale of the inputs.
        shift: 2 for inputs that are never negative, else 0.
        scale: float32, (outputs,), on the CPU.
        bias: float32, (outputs,), on the CPU.
    """

    def __init__(self, alpha: float, shift: float, scale: Tensor, bias: Tensor) -> None:
        self.alpha, self.shift = alpha, shift
        self.scale, self.bias = scale, bias


def lay_out(module: Any, weights: CodeWeights, widths_by_table: list[int]) -> Any:
    """Weights in the order in which the kernels read them.

    Args:
        module: the compiled kernels.
        weights: codes within their bits.
        widths_by_table: the widths whose inputs become tables, of 1 and 2.
    """
    mask = None if weights.mask is None else weights.mask.contiguous()
    outputs, channels = weights.codes.shape[:2]
    return module.mixed_prepare(
        weights.codes.contiguous(),
        mask,
        weights.bits.contiguous(),
        weights.input_bits.contiguous(),
        weights.never_negative,
        outputs,
        channels,
        weights.codes[0, 0].numel(),
        widths_by_table,
    )


def multiply(
    module: Any,
    prepared: Any,
    inputs: Tensor,
    target: Tensor,
    kernel: tuple[int, int],
    taps: Taps,
    affine: Affine | None,
    *,
    last: bool = False,
    threads: int | None = None,
) -> bool:
    """Writes the products of inputs.

    Args:
        module: the compiled kernels.
        prepared: of ``lay_out``.
        inputs: codes or numbers (images, channels, height, width) on the CPU, dense.
        target: sums or numbers (images, outputs, rows, columns), dense in the same order.
        kernel: rows and columns.
        taps: where they lie.
        affine: of numbers; None for codes and sums.
        last: whether channels are adjacent in memory.
        threads: None for as many as torch has.

    Returns:
        False if a code is out of range or a number is NaN.
    """
    # What has one row and column is both; channels that are adjacent are packed faster.
    adjacent = last or inputs.shape[2] == inputs.shape[3] == 1
    images, _, rows, columns = target.shape
    height, width = inputs.shape[2:]
    alone = target.shape[2] == target.shape[3] == 1
    if height == width == rows == columns == 1 and kernel == (1, 1):
        images, height, rows = 1, images, images  # a matrix, whose rows are worked on together
    fine: bool = module.mixed_run(
        prepared,
        inputs,
        target,
        None if affine is None else affine.scale,
        None if affine is None else affine.bias,
        1.0 if affine is None else affine.alpha,
        0.0 if affine is None else affine.shift,
        [
            *(images, height, width, rows, columns, *kernel),
            *(*taps.stride, *taps.padding, *taps.dilation),
        ],
        adjacent,
        last or alone,
        torch.get_num_threads() if threads is None else threads,
    )
    return fine
