"""Weights that were checked and laid out once, to be multiplied with many inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from latewood.errors import RequestError, invalid
from latewood.kernels.dispatch import tensors_are_virtual
from latewood.kernels.misfits import is_plain, require_memory
from latewood.kernels.mixed_products.code_products import (
    CodeWeights,
    Taps,
    largest_sum,
    over_bits,
    require_codes,
)
from latewood.kernels.mixed_products.native_products import Affine, lay_out, multiply
from latewood.kernels.mixed_products.product_choice import widths_by_table
from latewood.kernels.mixed_products.reference_products import reference_products
from latewood.kernels.mixed_products.self_test import sound_native

__all__ = ["PreparedProduct", "not_numbers"]


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
        if tensors_are_virtual() or not is_plain(inputs) or not inputs.is_cpu:
            return None
        module = sound_native()
        if module is None:
            return None
        prepared = self.layout(module)
        inputs = inputs.detach()
        last = not inputs.is_contiguous() and inputs.is_contiguous(
            memory_format=torch.channels_last
        )
        if not last:
            inputs = inputs.contiguous()
        memory_format = torch.channels_last if last else torch.contiguous_format
        target = torch.empty(shape, dtype=dtype, memory_format=memory_format)
        if not module.readable(inputs) or not module.readable(target):
            return None
        if not multiply(module, prepared, inputs, target, self._kernel, taps, affine, last=last):
            raise over_bits("input_codes") if affine is None else not_numbers()
        return target

    def layout(self, module: Any) -> Any:
        """The weights as the compiled kernels take them.

        Args:
            module: the compiled kernels.
        """
        if self._prepared is None or self._compiled is not module:
            self._prepared = lay_out(module, self.weights, widths_by_table(module))
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
