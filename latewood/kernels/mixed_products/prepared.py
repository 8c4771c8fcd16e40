"""Weights that were checked and laid out once, to be multiplied with many inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from latewood.errors import RequestError, invalid
from latewood.kernels.dispatch import native, tensors_are_virtual
from latewood.kernels.misfits import is_plain, require_memory
from latewood.kernels.mixed_products.code_products import (
    CodeWeights,
    Taps,
    largest_sum,
    over_bits,
    require_codes,
)
from latewood.kernels.mixed_products.methods import widths_by_table
from latewood.kernels.mixed_products.reference_products import reference_products

__all__ = ["Affine", "PreparedProduct"]


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


class PreparedProduct:
    """Weights of a layer, checked, and laid out for the compiled kernels where these can be used.

    Args:
        weights: codes within their bits, not of zero size.

    Raises:
        RequestError: the sums might not fit into int32.
    """

    def __init__(self, weights: CodeWeights) -> None:
        largest_sum(weights)
        self.weights = weights
        self._compiled: Any = None
        self._prepared: Any = None

    def sums(self, input_codes: Tensor, taps: Taps) -> Tensor:
        """The sums of products with codes.

        Args:
            input_codes: uint8, (images, channels, height, width).
            taps: where the kernel's taps lie.

        Returns:
            int32, (images, outputs, rows, columns), in the memory format of the inputs.

        Raises:
            RequestError: codes beyond their bits.
        """
        sizes = taps.output_sizes(_sizes(input_codes), self._kernel)
        shape = (len(input_codes), len(self.weights.codes), *sizes)
        if 0 in shape or not self.weights.codes.numel():
            return input_codes.new_zeros(shape, dtype=torch.int32)
        result = self._run(input_codes, shape, taps, torch.int32, None)
        if result is None:
            require_memory(input_codes=input_codes)
            require_codes("input_codes", input_codes, self.weights.input_bits, 1)
            result = reference_products(self.weights, input_codes, taps)
        return result

    def numbers(self, inputs: Tensor, taps: Taps, affine: Affine) -> Tensor | None:
        """Quantises numbers, multiplies and scales in one pass, where the kernels can.

        Args:
            inputs: float32, (images, channels, height, width).
            taps: where the kernel's taps lie.
            affine: how numbers become codes and sums numbers.

        Returns:
            float32, (images, outputs, rows, columns), or None where the kernels cannot.

        Raises:
            RequestError: NaN among the inputs.
        """
        if inputs.dtype != torch.float32 or not inputs.numel() or not self.weights.codes.numel():
            return None
        sizes = taps.output_sizes(_sizes(inputs), self._kernel)
        return self._run(
            inputs, (len(inputs), len(self.weights.codes), *sizes), taps, torch.float32, affine
        )

    @property
    def _kernel(self) -> tuple[int, int]:
        return self.weights.codes.shape[2], self.weights.codes.shape[3]

    def _run(
        self,
        inputs: Tensor,
        shape: tuple[int, ...],
        taps: Taps,
        dtype: torch.dtype,
        affine: Affine | None,
    ) -> Tensor | None:
        module = native()
        if module is None or tensors_are_virtual() or not is_plain(inputs) or not inputs.is_cpu:
            return None
        prepared = self.layout(module)
        inputs = inputs.detach()
        last = not inputs.is_contiguous() and inputs.is_contiguous(
            memory_format=torch.channels_last
        )
        if not last:
            inputs = inputs.contiguous()
        # What has one row and column is both; channels that are adjacent are packed faster.
        adjacent = last or inputs.shape[2] == inputs.shape[3] == 1
        memory_format = torch.channels_last if last else torch.contiguous_format
        target = torch.empty(shape, dtype=dtype, memory_format=memory_format)
        if not module.readable(inputs) or not module.readable(target):
            return None
        images, _, rows, columns = shape
        height, width = inputs.shape[2:]
        if height == width == rows == columns == 1 and self._kernel == (1, 1):
            images, height, rows = 1, images, images  # a matrix, whose rows are worked on together
        fine = module.mixed_run(
            prepared,
            inputs,
            target,
            None if affine is None else affine.scale,
            None if affine is None else affine.bias,
            1.0 if affine is None else affine.alpha,
            0.0 if affine is None else affine.shift,
            [
                *(images, height, width, rows, columns, *self._kernel),
                *(*taps.stride, *taps.padding, *taps.dilation),
            ],
            adjacent,
            last or shape[2] == shape[3] == 1,
            torch.get_num_threads(),
        )
        if not fine:
            raise over_bits("input_codes") if affine is None else not_numbers()
        return target

    def layout(self, module: Any) -> Any:
        """The weights as the compiled kernels take them.

        Args:
            module: the compiled kernels.
        """
        if self._prepared is None or self._compiled is not module:
            weights = self.weights
            mask = None if weights.mask is None else weights.mask.contiguous()
            outputs, channels = weights.codes.shape[:2]
            self._prepared = module.mixed_prepare(
                weights.codes.contiguous(),
                mask,
                weights.bits.contiguous(),
                weights.input_bits.contiguous(),
                weights.never_negative,
                outputs,
                channels,
                weights.codes[0, 0].numel(),
                widths_by_table(module),
            )
            self._compiled = module
        return self._prepared

    def __deepcopy__(self, memo: dict[int, Any]) -> PreparedProduct:
        return PreparedProduct(self.weights)

    def __reduce__(self) -> tuple[Any, ...]:
        return PreparedProduct, (self.weights,)


def not_numbers() -> RequestError:
    """The error about NaN among inputs, which have no code."""
    return invalid("inputs", "NaN", "numbers: NaN has no code")


def _sizes(inputs: Tensor) -> tuple[int, int]:
    return inputs.shape[2], inputs.shape[3]
