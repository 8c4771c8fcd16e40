"""Products of codes of 1 to 8 bits, a width a channel, exact in int32."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from latewood.errors import invalid
from latewood.kernels.misfits import require_memory
from latewood.kernels.mixed_products.code_products import (
    MOST_BITS,
    CodeWeights,
    Taps,
    require_codes,
    taps_of,
)
from latewood.kernels.mixed_products.native_products import Affine
from latewood.kernels.mixed_products.prepared import PreparedProduct, not_numbers
from latewood.kernels.mixed_products.reference_products import byte_products, reference_products

__all__ = [
    "Affine",
    "CodeWeights",
    "PreparedProduct",
    "Taps",
    "byte_products",
    "mixed_conv2d",
    "mixed_matmul",
    "not_numbers",
    "reference_products",
    "taps_of",
]


def mixed_matmul(
    weight_codes: Tensor,
    input_codes: Tensor,
    bits: Tensor | Sequence[int] | int,
    *,
    mask: Tensor | None = None,
) -> Tensor:
    r"""Products of two matrices of codes, each of whose columns has bits of its own.

    .. math:: y_{mn} = \sum_k 4^{P - p_k} (2 w_{nk} - 2^{p_k} + 1) (2 x_{mk} - 2^{p_k} + 1)

    A sum of 1 is worth :math:`2^{2 - 2P}`, with P the widest of the bits. The same int32 in every
    form and on any number of threads.

    Args:
        weight_codes: (w) uint8, (N, K), from 0 to 2^bits - 1 of their column.
        input_codes: (x) uint8, (M, K), likewise, on the same device.
        bits: (p) 1 to 8, integers (K,), or one for all.
        mask: which weights are there, bool, (N, K); the others count nothing. None: all.

    Returns:
        int32, (M, N).

    Raises:
        RequestError: tensors of another type, shape or device, codes beyond their bits, sums that
            might not fit into int32.

    Source:
        The multipliers are designed here [I], after SySMOL's mixed vector product.
    """
    _require_bytes("weight_codes", weight_codes, 2)
    _require_bytes("input_codes", input_codes, 2)
    product = _checked(
        weight_codes[:, :, None, None],
        input_codes[:, :, None, None],
        bits,
        None if mask is None else _checked_mask(mask, weight_codes)[:, :, None, None],
    )
    if input_codes.is_meta:
        return input_codes.new_empty((len(input_codes), len(weight_codes)), dtype=torch.int32)
    return product.sums(input_codes[:, :, None, None], Taps())[:, :, 0, 0]


def mixed_conv2d(
    weight_codes: Tensor,
    input_codes: Tensor,
    bits: Tensor | Sequence[int] | int,
    *,
    mask: Tensor | None = None,
    padding: int | str | tuple[int, int] = 0,
    stride: int | tuple[int, int] = 1,
    dilation: int | tuple[int, int] = 1,
) -> Tensor:
    """Convolution of codes, each of whose input channels has bits of its own.

    As ``mixed_matmul`` over channels and taps. Taps outside the image count nothing, as those of a
    convolution that is padded with zeros.

    Args:
        weight_codes: uint8, (outputs, channels, kernel height, kernel width).
        input_codes: uint8, (images, channels, height, width), on the same device.
        bits: 1 to 8, integers (channels,), or one for all.
        mask: which weights are there, bool, of the shape of ``weight_codes``.
        padding: rows and columns of zeros around the image, as in torch.
        stride: steps of the outputs.
        dilation: distance of taps.

    Returns:
        int32, (images, outputs, rows, columns).

    Raises:
        RequestError: as for ``mixed_matmul``; a kernel that is larger than the image.
    """
    _require_bytes("weight_codes", weight_codes, 4)
    _require_bytes("input_codes", input_codes, 4)
    kernel = (weight_codes.shape[2], weight_codes.shape[3])
    if 0 in kernel:
        raise invalid("weight_codes", tuple(weight_codes.shape), "a kernel with a tap or more")
    taps = taps_of(kernel, padding, stride, dilation)
    product = _checked(
        weight_codes, input_codes, bits, None if mask is None else _checked_mask(mask, weight_codes)
    )
    if input_codes.is_meta:
        sizes = taps.output_sizes((input_codes.shape[2], input_codes.shape[3]), kernel)
        shape = (len(input_codes), len(weight_codes), *sizes)
        return input_codes.new_empty(shape, dtype=torch.int32)
    return product.sums(input_codes, taps)


def _checked(
    weight_codes: Tensor,
    input_codes: Tensor,
    bits: Tensor | Sequence[int] | int,
    mask: Tensor | None,
) -> PreparedProduct:
    channels = weight_codes.shape[1]
    if input_codes.shape[1] != channels:
        raise invalid(
            "input_codes", f"{input_codes.shape[1]} channels", f"{channels}, as the weights have"
        )
    if input_codes.device != weight_codes.device:
        raise invalid(
            "input_codes", str(input_codes.device), f"the weights' device, {weight_codes.device}"
        )
    width = _checked_bits(bits, channels)
    if not weight_codes.is_meta:
        require_memory(weight_codes=weight_codes, input_codes=input_codes)
        require_codes("weight_codes", weight_codes, width, 1)
    return PreparedProduct(CodeWeights(weight_codes.detach(), width, width, mask))


def _checked_bits(bits: Tensor | Sequence[int] | int, channels: int) -> Tensor:
    expected = f"integers from 1 to {MOST_BITS}, one for each of {channels} channels or one for all"
    try:
        width = torch.as_tensor(bits)
    except (TypeError, ValueError, RuntimeError) as error:
        raise invalid("bits", bits, expected) from error
    if width.is_meta:
        raise invalid("bits", "a meta tensor", expected)
    width = width.detach().to("cpu")
    if not width.numel() and not channels:
        return torch.zeros(0, dtype=torch.uint8)
    if width.is_floating_point() or width.is_complex() or width.dtype == torch.bool:
        raise invalid("bits", width.dtype, expected)
    if width.dim() > 1 or (width.dim() == 1 and len(width) != channels):
        raise invalid("bits", f"shape {tuple(width.shape)}", expected)
    wide = width.to(torch.int64)
    if wide.numel() and not bool(((wide >= 1) & (wide <= MOST_BITS)).all()):
        raise invalid("bits", f"{int(wide.min())} to {int(wide.max())}", expected)
    return wide.to(torch.uint8).expand(channels).contiguous()


def _checked_mask(mask: Tensor, weight_codes: Tensor) -> Tensor:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise invalid("mask", getattr(mask, "dtype", mask), "a tensor of bool")
    if mask.shape != weight_codes.shape or mask.device != weight_codes.device:
        raise invalid(
            "mask",
            f"{tuple(mask.shape)} on {mask.device}",
            f"{tuple(weight_codes.shape)} on {weight_codes.device}",
        )
    # Not as it is: bytes that were viewed as bool may hold other numbers than 0 and 1.
    return mask.detach() != 0


def _require_bytes(name: str, codes: Tensor, dimensions: int) -> None:
    if not isinstance(codes, Tensor) or codes.dtype != torch.uint8:
        raise invalid(name, getattr(codes, "dtype", type(codes).__name__), "a tensor of uint8")
    if codes.dim() != dimensions:
        raise invalid(name, f"shape {tuple(codes.shape)}", f"{dimensions} dimensions")
