"""The grid of 1 to 8 bits: codes, the values they stand for, and the noise that stands for bits."""

from __future__ import annotations

import torch
from torch import Tensor

from latewood.errors import invalid

__all__ = ["MOST_BITS", "bits_of", "code", "quantize", "quantize_unchecked", "s_of", "value"]

MOST_BITS = 8
"""Codes are unsigned bytes."""


def code(weights: Tensor, bits: int | Tensor) -> Tensor:
    r"""The code of each number: the index of its cell when :math:`[-2, 2]` has :math:`2^p` cells.

    .. math:: u = \mathrm{clip}(\lfloor (w + 2) / 2^{2-p} \rfloor, 0, 2^p - 1)

    A number on the border of two cells belongs to the upper one, so 0 has the upper code. The
    codes nest: ``code(w, a) >> (a - b) == code(w, b)`` for all ``a >= b``.

    Args:
        weights: numbers of any shape and floating dtype, without NaN; beyond 2 they take the
            outermost codes.
        bits: number of bits ``p`` from 1 to 8, or integers that broadcast to ``weights``.

    Returns:
        Codes, uint8, of the shape of ``weights``.

    Raises:
        RequestError: bits out of range or of another shape, NaN, numbers that are not floating.

    Source:
        The grid is reconstructed from the SMOL paper [R]; the rule for borders is inferred [I].
    """
    _require_floating(weights)
    if weights.isnan().any():
        count = int(weights.isnan().sum())
        raise invalid("weights", f"{count} NaN", "numbers: NaN has no code")
    wide = _wide(weights)
    return _cells(wide, _levels(_checked_bits(bits, weights), wide)).to(torch.uint8)


def value(codes: Tensor, bits: int | Tensor) -> Tensor:
    r"""The number that a code stands for, the centre of its cell.

    .. math:: v = (2u - (2^p - 1)) \, 2^{1-p}

    Args:
        codes: integers from 0 to :math:`2^p - 1`, any shape and integer dtype.
        bits: number of bits ``p`` from 1 to 8, or integers that broadcast to ``codes``.

    Returns:
        Odd multiples of :math:`2^{1-p}` between -2 and 2, float32, of the shape of ``codes``.

    Raises:
        RequestError: bits out of range or of another shape, codes that do not fit into them.

    Source:
        Reconstructed from the SMOL paper [R].
    """
    if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
        raise invalid("codes", codes.dtype, "a tensor of integers")
    width = _checked_bits(bits, codes)
    numbers = codes.to(torch.float32)
    levels = _levels(width, numbers)
    if bool(((numbers < 0) | (numbers >= levels)).any()):
        span = f"{int(codes.min())} to {int(codes.max())}"
        raise invalid("codes", span, "codes from 0 to 2**bits - 1")
    return _centres(numbers, levels)


def quantize(weights: Tensor, bits: int | Tensor) -> Tensor:
    """The nearest number of the grid of so many bits: ``value(code(w, bits), bits)``.

    It has no zero: the smallest numbers are :math:`\\pm 2^{1-p}`. The gradient is zero almost
    everywhere; training estimates it straight through.

    Args:
        weights: numbers of any shape and floating dtype; NaN stays NaN.
        bits: number of bits from 1 to 8, or integers that broadcast to ``weights``.

    Returns:
        Numbers of the grid, of the shape and dtype of ``weights``.

    Raises:
        RequestError: bits out of range or of another shape, numbers that are not floating.
    """
    _require_floating(weights)
    return quantize_unchecked(weights, _checked_bits(bits, weights))


def quantize_unchecked(weights: Tensor, bits: int | Tensor) -> Tensor:
    """``quantize`` of numbers and bits that are known to be right, so that no device is waited for.

    Args:
        weights: as ``quantize``.
        bits: as ``quantize``.

    Returns:
        Numbers of the grid, of the shape and dtype of ``weights``.
    """
    wide = _wide(weights)
    levels = _levels(bits, wide)
    # Odd numbers below 2**8 fit into every dtype that weights have.
    return _centres(_cells(wide, levels), levels).to(weights.dtype)


def bits_of(s: Tensor | float) -> Tensor:
    r"""Bits of a noise parameter: :math:`p = 1 - \log_2 \sigma(s) = 1 + \log_2(1 + e^{-s})`.

    A quantiser of p bits moves a number by at most :math:`2^{1-p}`; that is the half-width
    :math:`\sigma(s)` of the noise. Differentiable, and finite wherever ``s`` is.

    Args:
        s: noise parameters, any shape.

    Returns:
        Bits, at least 1, of the shape and dtype of ``s`` (float64 for a plain number).

    Source:
        SMOL, reconstructed [R].
    """
    parameter = s if isinstance(s, Tensor) else torch.tensor(s, dtype=torch.float64)
    return 1 + torch.nn.functional.softplus(-parameter) / _LN2


def s_of(bits: Tensor | float) -> Tensor:
    r"""Noise parameter of so many bits: :math:`s = -\ln(2^{p-1} - 1)`, the inverse of ``bits_of``.

    Args:
        bits: numbers of bits of 1 and more, any shape; 1 gives infinity.

    Returns:
        Noise parameters, of the shape and dtype of ``bits`` (float64 for a plain number).

    Raises:
        RequestError: fewer than 1 bit.

    Source:
        SMOL, reconstructed [R].
    """
    width = bits if isinstance(bits, Tensor) else torch.tensor(bits, dtype=torch.float64)
    if not width.is_floating_point():
        width = width.to(torch.float64)
    if width.numel() and not bool((width >= 1).all()):
        raise invalid("bits", float(width.min()), "1 or more")
    return -torch.log(torch.expm1((width - 1) * _LN2))


_LN2 = 0.6931471805599453


def _wide(weights: Tensor) -> Tensor:
    return weights if weights.dtype == torch.float64 else weights.to(torch.float32)


def _cells(wide: Tensor, levels: float | Tensor) -> Tensor:
    # Scaling by a power of two is exact where adding 2 first would round small numbers up.
    cells = torch.floor(wide * (levels / 4)) + levels / 2
    return cells.clamp_max(levels - 1).clamp_min(0)


def _centres(codes: Tensor, levels: float | Tensor) -> Tensor:
    return (2 * codes - (levels - 1)) * (2 / levels)


def _levels(bits: int | Tensor, like: Tensor) -> float | Tensor:
    return torch.exp2(bits.to(like.device, like.dtype)) if isinstance(bits, Tensor) else 2.0**bits


def _checked_bits(bits: int | Tensor, like: Tensor) -> int | Tensor:
    expected = f"an integer from 1 to {MOST_BITS}, or integers that broadcast to the numbers"
    if not isinstance(bits, Tensor):
        if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= MOST_BITS:
            raise invalid("bits", bits, expected)
        return bits
    if bits.is_floating_point() or bits.is_complex() or bits.dtype == torch.bool:
        raise invalid("bits", bits.dtype, expected)
    try:
        fits = torch.broadcast_shapes(bits.shape, like.shape) == like.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise invalid("bits", f"shape {tuple(bits.shape)}", f"a shape for {tuple(like.shape)}")
    if bits.numel() and not bool(((bits >= 1) & (bits <= MOST_BITS)).all()):
        raise invalid("bits", f"{int(bits.min())} to {int(bits.max())}", expected)
    return bits


def _require_floating(weights: Tensor) -> None:
    if not weights.is_floating_point():
        raise invalid("weights", weights.dtype, "a tensor of floating numbers")
