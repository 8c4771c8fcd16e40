"""Other exact forms of the sum of a machine's dot product, as plain reference functions."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latewood.errors import invalid

__all__ = [
    "bit_serial_sum",
    "common_grid",
    "mixed_sum",
    "signed_bytes_sum",
    "unsigned_signed_sum",
]


def mixed_sum(first: ArrayLike, second: ArrayLike, bits: ArrayLike) -> int:
    r"""The sum itself, :math:`\sum_j M(p_j) m_j m'_j` with :math:`m = 2u - (2^p - 1)`.

    Args:
        first: (n,) codes.
        second: (n,) codes.
        bits: of each pair, or one number; 1 to 4.

    Returns:
        The sum in units of 1/64, unbounded.
    """
    width = np.asarray(bits, dtype=np.int64)
    multiplier = 4 ** (4 - width)
    return int((multiplier * _odd(first, width) * _odd(second, width)).sum())


def bit_serial_sum(first: ArrayLike, second: ArrayLike, bits: int) -> int:
    r"""By exclusive or and population counts of bit planes, the most significant plane first.

    .. math:: \sum m m' = \sum_{i,j<p} 2^{2(p-1)-i-j} (n - 2\,\mathrm{popcount}(A_i \oplus B_j))

    Args:
        first: (n,) codes of ``bits`` bits.
        second: (n,) codes of ``bits`` bits.
        bits: one width for all.

    Returns:
        :math:`\sum m m'`, without a multiplier.
    """
    planes = [
        [(np.asarray(codes, dtype=np.int64) >> (bits - 1 - i)) & 1 for i in range(bits)]
        for codes in (first, second)
    ]
    number = len(planes[0][0])
    return sum(
        2 ** (2 * (bits - 1) - i - j) * (number - 2 * int((a ^ b).sum()))
        for i, a in enumerate(planes[0])
        for j, b in enumerate(planes[1])
    )


def unsigned_signed_sum(weights: ArrayLike, inputs: ArrayLike, bits: int) -> int:
    r"""By products of unsigned and signed bytes, :math:`2 \sum u_w m_x - (2^p - 1) \sum m_x`.

    Args:
        weights: (n,) codes of ``bits`` bits.
        inputs: (n,) codes of ``bits`` bits.
        bits: one width for all, at most 7: m must fit into a signed byte.

    Raises:
        RequestError: more than 7 bits.
    """
    if bits > 7:
        raise invalid("bits", bits, "at most 7")
    signed = _odd(inputs, np.int64(bits))
    unsigned = np.asarray(weights, dtype=np.int64)
    return int(2 * (unsigned * signed).sum() - (2**bits - 1) * signed.sum())


def signed_bytes_sum(weights: ArrayLike, inputs: ArrayLike, bits: int) -> int:
    r"""The same up to 8 bits, with :math:`s = u - 2^{p-1}`.

    .. math:: 4 \sum u_w s_x + 2 \sum u_w - 2 (2^p - 1) \sum s_x - (2^p - 1) n

    Args:
        weights: (n,) codes of ``bits`` bits.
        inputs: (n,) codes of ``bits`` bits.
        bits: one width for all.
    """
    unsigned = np.asarray(weights, dtype=np.int64)
    signed = np.asarray(inputs, dtype=np.int64) - 2 ** (bits - 1)
    largest = 2**bits - 1
    return int(
        4 * (unsigned * signed).sum()
        + 2 * unsigned.sum()
        - 2 * largest * signed.sum()
        - largest * len(unsigned)
    )


def common_grid(codes: ArrayLike, bits: ArrayLike) -> NDArray[np.int8]:
    """The numbers in units of 1/8, integers of one byte for 1 to 4 bits: 8 times ``value``.

    Sums of their products are those of the machine, whatever the mixture of widths.

    Args:
        codes: (n,) codes.
        bits: of each, or one number; 1 to 4.
    """
    width = np.asarray(bits, dtype=np.int64)
    return (_odd(codes, width) * 2 ** (4 - width)).astype(np.int8)


def _odd(codes: ArrayLike, bits: NDArray[np.int64] | np.int64) -> NDArray[np.int64]:
    return np.asarray(2 * np.asarray(codes, dtype=np.int64) - (2**bits - 1))
