"""Integer networks in one call of compiled code."""

from __future__ import annotations

import math
from typing import Any, Final, Literal

import torch
from torch import Tensor

from latewood.kernels.misfits import is_covered, is_plain
from latewood.kernels.mixed_products import PreparedProduct, Taps, not_numbers
from latewood.precision.code_thresholds import number_cuts
from latewood.precision.integer_network import (
    Elementwise,
    Encoder,
    Epilogue,
    Flatten,
    FloatProduct,
    IntegerNetwork,
    PackedProduct,
    Pool,
)

__all__ = ["NativeNetwork", "ProductForm"]

ProductForm = Literal["lanes", "panels"]
"""Positions of the image or outputs in the lanes of a vector."""

_FEWEST_POSITIONS: Final = 16
_MOST_TABLE_BYTES: Final = 1 << 20
"""Weights take 32 times the room in tables: beyond it they no longer come from a near cache."""

_POOLS: Final = {"max": 0, "average": 1, "mean": 2}


class NativeNetwork:
    """A network as compiled code holds it: all weights copied, every shape checked.

    Args:
        module: the compiled kernels.
        network: what to run.
        form: of all packed products; None: the one that is faster for each.
    """

    def __init__(
        self, module: Any, network: IntegerNetwork, form: ProductForm | None = None
    ) -> None:
        self.network = network
        self._form = form
        self._native = module.IntegerNetwork()
        for buffer in network.buffers:
            self._native.buffer(*buffer.shape, buffer.bits)
        self._native.begin(network.source)
        for step in network.steps:
            if isinstance(step, Flatten):
                self._native.flatten(step.source, step.target)
                continue
            self._epilogue(step.epilogue)
            if isinstance(step, PackedProduct):
                self._packed(module, step)
            elif isinstance(step, FloatProduct):
                shape = self._written_shape(step.epilogue)
                outputs, _, *kernel = step.weight.shape
                taps = _numbers(step.taps, shape, (kernel[0], kernel[1]))
                weight, bias = step.weight.contiguous(), step.bias
                self._native.floating(step.source, weight, bias, outputs, step.groups, taps)
            elif isinstance(step, Pool):
                taps = _numbers(step.taps, self._written_shape(step.epilogue), step.kernel)
                self._native.pool(
                    *(step.source, _POOLS[step.kind], taps, step.counts_padding),
                    *(step.divisor or 0, *step.taps.after),
                )
            else:
                assert isinstance(step, Elementwise)
                self._native.numbers(step.source)
        self._native.finish(network.target)

    @property
    def image_bytes(self) -> int:
        """Memory of what lies between steps, for one image."""
        return int(self._native.image_bytes)

    def run(self, inputs: Tensor) -> Tensor:
        """The outputs of the network.

        Args:
            inputs: float32 on the CPU, (images, channels, rows, columns) or (images, channels).

        Raises:
            RequestError: NaN where codes are formed.
        """
        shape = self.network.buffers[self.network.target].shape
        outputs = torch.empty((len(inputs), *shape[: self.network.output_axes - 1]))
        if not self._native.run(
            inputs.detach().contiguous(), outputs, len(inputs), torch.get_num_threads()
        ):
            raise not_numbers()
        return outputs

    def misfit(self, inputs: Tensor) -> str | None:
        """Why compiled code cannot work on these inputs; None if it can.

        Args:
            inputs: of the shape that the network was made for.
        """
        if not is_plain(inputs) or inputs.layout is not torch.strided or not is_covered(inputs):
            return "the inputs are no plain tensor"
        if not inputs.is_cpu or inputs.dtype != torch.float32 or inputs.is_neg():
            return f"the inputs are of {inputs.dtype} on {inputs.device.type}"
        if not len(inputs) or self.network.batch not in (None, len(inputs)):
            return f"{len(inputs)} images"
        return None

    def _packed(self, module: Any, step: PackedProduct) -> None:
        weights = step.weights
        outputs, channels, *kernel = weights.codes.shape
        shape = self._written_shape(step.epilogue)
        form = self._form
        if form is None:
            tables = 4 * math.prod(weights.codes.shape)
            few = shape[1] * shape[2] < _FEWEST_POSITIONS
            form = "panels" if few or tables > _MOST_TABLE_BYTES else "lanes"
        mask = None if weights.mask is None else weights.mask.contiguous()
        self._native.packed(
            *(step.source, weights.codes.contiguous(), mask, weights.bits.contiguous()),
            *(weights.input_bits.contiguous(), weights.never_negative, outputs),
            _numbers(step.taps, shape, (kernel[0], kernel[1])),
            *(step.scale.contiguous(), step.bias.contiguous()),
            PreparedProduct(weights).layout(module) if form == "panels" else None,
        )

    def _written_shape(self, epilogue: Epilogue) -> tuple[int, int, int]:
        target = epilogue.target
        if target is None:
            target = epilogue.encoders[0].target
        return self.network.buffers[target].shape

    def _epilogue(self, epilogue: Epilogue) -> None:
        self._native.epilogue(
            epilogue.factor,
            epilogue.addend,
            -1 if epilogue.residual is None else epilogue.residual,
            -1 if epilogue.target is None else epilogue.target,
            -math.inf if epilogue.low is None else epilogue.low,
            math.inf if epilogue.high is None else epilogue.high,
        )
        for encoder in epilogue.encoders:
            self._encoder(encoder)

    def _encoder(self, encoder: Encoder) -> None:
        self._native.encoder(
            *(encoder.target, encoder.alpha, encoder.offset, encoder.thresholds, encoder.signs),
            0 if encoder.thresholds is None else encoder.thresholds.shape[1],
            *(number_cuts(encoder.alpha, encoder.offset, bits) for bits in (1, 2)),
        )


def _numbers(taps: Taps, shape: tuple[int, int, int], kernel: tuple[int, int]) -> list[int]:
    return [*shape[1:], *kernel, *taps.stride, *taps.padding, *taps.dilation]
