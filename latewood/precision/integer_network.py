"""A packed network as a list of steps over numbered buffers, for executors without torch.

Every step writes buffers of one image: numbers (float32), or codes (a byte each) that one packed
layer or several with the same format read. ``reference_run`` says what each step computes, to the
bit; an executor that follows it gives the same outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from latewood.kernels.mixed_products import CodeWeights, Taps

__all__ = [
    "Buffer",
    "Elementwise",
    "Encoder",
    "Epilogue",
    "Flatten",
    "FloatProduct",
    "IntegerNetwork",
    "PackedProduct",
    "Pool",
    "Step",
    "step_buffers",
]


@dataclass(frozen=True)
class Buffer:
    """What lies between steps, of one image.

    Args:
        shape: (channels, rows, columns); vectors have one row and column.
        bits: of codes, uint8, (channels,), 0 for channels whose codes nobody reads; None for
            numbers.
    """

    shape: tuple[int, int, int]
    bits: Tensor | None = None


@dataclass(frozen=True)
class Encoder:
    r"""How numbers x of a step become codes of its reader, in float32:

    .. math:: u = \mathrm{clip}(\lfloor (x / \alpha - o) 2^p / 4 \rfloor + 2^p / 2, 0, 2^p - 1)

    Args:
        target: the buffer of codes, whose bits are p; channels of 0 bits get the code 0.
        alpha: scale of the reader's inputs, a float32.
        offset: (o) 2 for inputs that are never negative, else 0.
        thresholds: int32, (channels, 2^most - 1), ascending, most the largest of the bits, at most
            4; None if the numbers decide. The code of a sum s is the count of thresholds t with
            ``signs * s >= t`` among the first 2^p - 1 of its channel.
        signs: int32, (channels,), 1 or -1.
    """

    target: int
    alpha: float
    offset: float
    thresholds: Tensor | None = None
    signs: Tensor | None = None


@dataclass(frozen=True)
class Epilogue:
    """What becomes of the numbers of a step, one by one, in this order.

    Args:
        factor: float32, (channels,): with ``addend`` the fused multiply-add
            ``fma(x, factor, addend)`` of a batch norm that stands apart; None: nothing.
        addend: float32, (channels,).
        residual: a buffer of numbers that is added.
        low: least number, smaller ones become it; None: none.
        high: largest number, likewise.
        target: the buffer of numbers that takes the result; None: only codes are read.
        encoders: of the codes that readers take. NaN has no code and ends the run.
    """

    factor: Tensor | None = None
    addend: Tensor | None = None
    residual: int | None = None
    low: float | None = None
    high: float | None = None
    target: int | None = None
    encoders: tuple[Encoder, ...] = ()


@dataclass(frozen=True)
class PackedProduct:
    """Sums of products of codes, as float32 numbers ``sum * scale + bias``, two roundings.

    Args:
        source: a buffer of codes with the bits of the weights' inputs.
        name: of the layer.
        weights: codes, bits and mask; the sums are those of ``reference_products``.
        taps: where the taps lie; (1, 1) kernels over vectors are linear layers.
        scale: float32, (outputs,).
        bias: float32, (outputs,).
        epilogue: what becomes of the numbers.
    """

    source: int
    name: str
    weights: CodeWeights
    taps: Taps
    scale: Tensor
    bias: Tensor
    epilogue: Epilogue


@dataclass(frozen=True)
class FloatProduct:
    """A convolution or linear layer that stayed in floating point.

    Products are added one by one, in the order of channels, kernel rows and kernel columns,
    starting from 0; every product and every sum is rounded to float32. Taps outside the image
    count 0. Last comes the bias.

    Args:
        source: a buffer of numbers.
        name: of the layer's weight.
        weight: float32, (outputs, channels / groups, kernel height, kernel width).
        bias: float32, (outputs,), or None.
        taps: where the taps lie.
        groups: as of ``nn.Conv2d``.
        epilogue: what becomes of the numbers.
    """

    source: int
    name: str
    weight: Tensor
    bias: Tensor | None
    taps: Taps
    groups: int
    epilogue: Epilogue


@dataclass(frozen=True)
class Pool:
    """The largest number or the mean of a window.

    A mean over the whole image ("mean") has eight partial sums, of every eighth position; the last
    four are added to the first, of these the last two to the first, and so on. One of a window
    ("average") is a sum in the order of rows and columns. The sum is divided by the count.

    Args:
        source: a buffer of numbers.
        kind: "max" and "average" over windows, "mean" over the image.
        kernel: rows and columns of the window.
        taps: where windows lie; what is outside the image is left out.
        counts_padding: whether positions of the padding count in an average.
        divisor: what the sum of an average is divided by; None: the count.
        epilogue: what becomes of the numbers.
    """

    source: int
    kind: Literal["max", "average", "mean"]
    kernel: tuple[int, int]
    taps: Taps
    counts_padding: bool
    divisor: int | None
    epilogue: Epilogue


@dataclass(frozen=True)
class Elementwise:
    """The epilogue alone: numbers that are added, clipped, or become codes.

    Args:
        source: a buffer of numbers.
        epilogue: what becomes of them.
    """

    source: int
    epilogue: Epilogue


@dataclass(frozen=True)
class Flatten:
    """The same numbers as a vector, in the order of channels, rows and columns.

    Args:
        source: a buffer of numbers.
        target: one of shape (channels * rows * columns, 1, 1).
    """

    source: int
    target: int


Step = PackedProduct | FloatProduct | Pool | Elementwise | Flatten


@dataclass(frozen=True)
class IntegerNetwork:
    """A whole network: float32 images in, float32 out.

    Args:
        buffers: what steps read and write; each is written by one step before it is read.
        steps: in order.
        source: the buffer of the network's input.
        target: that of its output.
        output_axes: 2 for outputs (images, channels), 4 for (images, channels, rows, columns).
        batch: the only number of images that the network allows; None: any.
    """

    buffers: tuple[Buffer, ...] = field(repr=False)
    steps: tuple[Step, ...] = field(repr=False)
    source: int
    target: int
    output_axes: int
    batch: int | None = None

    def describe(self) -> str:
        """The steps in words, one a line."""
        return "\n".join(_described(step, self.buffers) for step in self.steps)


def step_buffers(step: Step) -> tuple[list[int], list[int]]:
    """The buffers that a step reads and those that it writes."""
    if isinstance(step, Flatten):
        return [step.source], [step.target]
    epilogue = step.epilogue
    reads = [step.source] + ([] if epilogue.residual is None else [epilogue.residual])
    writes = [] if epilogue.target is None else [epilogue.target]
    return reads, writes + [encoder.target for encoder in epilogue.encoders]


def _described(step: Step, buffers: Sequence[Buffer]) -> str:
    shape = " x ".join(map(str, buffers[step.source].shape))
    if isinstance(step, Flatten):
        return f"flatten {shape}"
    if isinstance(step, PackedProduct):
        what = f"packed product {step.name}, {_widths(step.weights.bits)}"
    elif isinstance(step, FloatProduct):
        what = f"float product {step.name}"
    elif isinstance(step, Pool):
        what = step.kind if step.kind == "mean" else f"{step.kind} pooling"
    else:
        what = "numbers"
    parts = [f"{what} of {shape}"]
    epilogue = step.epilogue
    if epilogue.factor is not None:
        parts.append("batch norm")
    if epilogue.residual is not None:
        parts.append("residual")
    if epilogue.low is not None or epilogue.high is not None:
        parts.append("clip")
    if epilogue.target is not None:
        parts.append("to numbers")
    for encoder in epilogue.encoders:
        by = "" if encoder.thresholds is None else " by thresholds"
        parts.append(f"to codes{by}")
    return ", ".join(parts)


def _widths(bits: Tensor) -> str:
    present = torch.unique(bits).flip(0).tolist()
    return "/".join(str(width) for width in present if width) + " bit"
