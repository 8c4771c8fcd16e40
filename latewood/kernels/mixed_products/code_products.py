"""What a product of codes is made of: weights with bits and a mask, and how taps meet inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from latewood.errors import RequestError, invalid

__all__ = ["CodeWeights", "Taps", "largest_sum", "odd_integers", "require_codes", "taps_of"]

MOST_BITS = 8
_LARGEST = 2**31 - 1


@dataclass(frozen=True)
class CodeWeights:
    """Weights as codes, with what is needed to multiply them.

    Args:
        codes: uint8, (outputs, channels, kernel height, kernel width).
        bits: of the weights, uint8, (channels,), 1 to 8, or 0 for a channel that has left, whose
            codes count nothing.
        input_bits: of the inputs, like ``bits``, 0 at the same channels.
        mask: which weights are there, bool, of the shape of ``codes``; None if all are.
        never_negative: whether an input of code u stands for 2u + 1 in place of
            2u - (2^bits - 1).
    """

    codes: Tensor
    bits: Tensor
    input_bits: Tensor
    mask: Tensor | None = None
    never_negative: bool = False

    @property
    def unit(self) -> float:
        """What a sum of 1 is worth where weights and inputs are numbers of the grid."""
        widest = int(self.bits.max()) + int(self.input_bits.max()) if self.bits.numel() else 2
        return float(2.0 ** (2 - widest))

    def grid_weights(self) -> Tensor:
        """The odd integers of the weights in the unit of the widest, 0 where masked; int64."""
        widest = int(self.bits.max())
        shape = (-1, 1, 1)
        width = self.bits.to(torch.int64).reshape(shape)
        numbers = (odd_integers(self.codes, width) << (widest - width)) * (width > 0)
        return numbers if self.mask is None else numbers * self.mask

    def grid_inputs(self, codes: Tensor, axis: int) -> Tensor:
        """The odd integers of inputs with channels at an axis, in the unit of the widest; int64."""
        widest = int(self.input_bits.max())
        shape = [1] * codes.dim()
        shape[axis] = -1
        width = self.input_bits.to(codes.device, torch.int64).reshape(shape)
        numbers = (
            2 * codes.to(torch.int64) + 1 if self.never_negative else odd_integers(codes, width)
        )
        return numbers << (widest - width)


@dataclass(frozen=True)
class Taps:
    """Where the taps of a kernel lie, in rows and columns.

    Args:
        stride: steps of the outputs.
        padding: rows and columns of zeros before the first one.
        after: the same behind the last one.
        dilation: distance of taps.
    """

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    after: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    def output_sizes(self, sizes: tuple[int, int], kernel: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the output.

        Raises:
            RequestError: the kernel is larger than the padded input.
        """
        result = []
        for axis, size in enumerate(sizes):
            padded = size + self.padding[axis] + self.after[axis]
            reach = self.dilation[axis] * (kernel[axis] - 1) + 1
            if reach > padded:
                raise invalid(
                    "input_codes",
                    f"{sizes[0]} x {sizes[1]}",
                    f"with padding at least {reach} along axis {axis - 2}, the reach of the kernel",
                )
            result.append((padded - reach) // self.stride[axis] + 1)
        return result[0], result[1]


def taps_of(
    kernel: tuple[int, int],
    padding: int | str | tuple[int, int],
    stride: int | tuple[int, int],
    dilation: int | tuple[int, int],
) -> Taps:
    """The taps that arguments in torch's form describe.

    Args:
        kernel: its sizes.
        padding: a number, one for rows and one for columns, "same" or "valid".
        stride: likewise; 1 with "same".
        dilation: likewise.

    Raises:
        RequestError: something else.
    """
    steps, distance = _pair("stride", stride, 1), _pair("dilation", dilation, 1)
    if padding == "same":
        if steps != (1, 1):
            raise invalid("stride", stride, "1 with padding='same'")
        total = [distance[axis] * (kernel[axis] - 1) for axis in range(2)]
        before = (total[0] // 2, total[1] // 2)
        return Taps(steps, before, (total[0] - before[0], total[1] - before[1]), distance)
    if padding == "valid":
        padding = 0
    if isinstance(padding, str):
        raise invalid("padding", padding, "numbers, 'same' or 'valid'")
    around = _pair("padding", padding, 0)
    return Taps(steps, around, around, distance)


def odd_integers(codes: Tensor, bits: Tensor | int) -> Tensor:
    """The odd integers 2u - (2^bits - 1) that codes stand for; int64."""
    width = torch.as_tensor(bits, dtype=torch.int64, device=codes.device)
    return 2 * codes.to(torch.int64) - ((torch.ones_like(width) << width) - 1)


def require_codes(name: str, codes: Tensor, bits: Tensor, axis: int) -> None:
    """Refuses codes that do not fit into their bits.

    Args:
        name: of the argument.
        codes: uint8, with channels at ``axis``.
        bits: uint8, (channels,).
        axis: of the channels.

    Raises:
        RequestError: a code of 2^bits or more.
    """
    shape = [1] * codes.dim()
    shape[axis] = -1
    width = bits.to(codes.device).reshape(shape)
    over = (codes >> width) * (width > 0)
    if codes.numel() and bool(over.any()):
        raise over_bits(name)


def over_bits(name: str) -> RequestError:
    """The error about codes that do not fit into their bits."""
    return invalid(name, "codes beyond their bits", "codes from 0 to 2**bits - 1 of their channel")


def largest_sum(weights: CodeWeights) -> int:
    """The largest sum that inputs can give, in the unit of the widest bits.

    Raises:
        RequestError: it does not fit into int32.
    """
    taps = weights.codes.shape[2] * weights.codes.shape[3]
    width, of_inputs = weights.bits.to(torch.int64), weights.input_bits.to(torch.int64)
    if not width.numel():
        return 0
    one = torch.ones_like(width)
    most = ((one << width) - 1) << (width.max() - width)  # 0 for 0 bits
    inputs = (one << (of_inputs + 1 if weights.never_negative else of_inputs)) - 1
    total = int((most * (inputs << (of_inputs.max() - of_inputs))).sum()) * taps
    if total > _LARGEST:
        raise invalid(
            "bits",
            f"{int(width.max())} at most for {width.numel()} channels of {taps} taps",
            f"sums within int32: they may reach {total}, more than {_LARGEST}",
        )
    return total


def _pair(name: str, value: int | tuple[int, int], least: int) -> tuple[int, int]:
    numbers = (value, value) if isinstance(value, int) else tuple(value)
    if len(numbers) != 2 or any(
        not isinstance(n, int) or isinstance(n, bool) or n < least for n in numbers
    ):
        raise invalid(name, value, f"a whole number, or two of them, from {least} on")
    return numbers[0], numbers[1]
