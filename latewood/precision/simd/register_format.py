"""The 128-bit register with elements of 4, 2 and 1 bits, to the bit."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latewood.errors import invalid
from latewood.precision.patterns import PATTERNS, Pattern, pattern_index

__all__ = [
    "MULTIPLIERS",
    "REGISTER_BYTES",
    "ElementLayout",
    "element_layout",
    "pack_registers",
    "register_bytes",
    "register_number",
    "unpack_registers",
]

REGISTER_BYTES: Final = 16

MULTIPLIERS: Final = {4: 1, 2: 16, 1: 64}
"""M(p) = 4^(4 - p): what brings products of p-bit elements to the common unit of 1/64."""


@dataclass(frozen=True)
class ElementLayout:
    """Where the elements of a pattern lie in a register, in order.

    Args:
        bits: (N,) width of each element.
        shifts: (N,) position of each element's lowest bit, from bit 0 of the register.
        granules: (N,) the granule of 16 bits that it lies in.
        multipliers: (N,) M(p) of its width.
    """

    bits: NDArray[np.int64]
    shifts: NDArray[np.int64]
    granules: NDArray[np.int64]
    multipliers: NDArray[np.int64]

    @property
    def size(self) -> int:
        """(N) elements in the register."""
        return len(self.bits)


def element_layout(pattern: int | Pattern) -> ElementLayout:
    """The elements of a pattern: all of 4 bits, then those of 2, then those of 1, from bit 0 on.

    Args:
        pattern: granules (g4, g2, g1), or the index of a pattern.

    Raises:
        RequestError: no such pattern.
    """
    if isinstance(pattern, int | np.integer) and not isinstance(pattern, bool):
        if not 0 <= pattern < len(PATTERNS):
            raise invalid("pattern", int(pattern), "an index from 0 to 44")
        return _layout(int(pattern))
    return _layout(pattern_index(pattern))  # type: ignore[arg-type]


@functools.cache
def _layout(index: int) -> ElementLayout:
    widths = np.repeat(
        [4, 2, 1], [16 // p * g for p, g in zip((4, 2, 1), PATTERNS[index], strict=True)]
    )
    ends = np.cumsum(widths)
    shifts = ends - widths
    layout = ElementLayout(
        bits=widths,
        shifts=shifts,
        granules=shifts // 16,
        multipliers=np.array([0, 64, 16, 0, 1])[widths],
    )
    for array in vars(layout).values():
        array.setflags(write=False)
    return layout


def pack_registers(codes: ArrayLike, pattern: int | Pattern) -> NDArray[np.uint8]:
    """Registers with these codes as their elements.

    Args:
        codes: (..., N) codes u from 0 to 2**p - 1, with p the width of each element of the pattern.
        pattern: as in ``element_layout``.

    Returns:
        (..., 16) bytes, little-endian.

    Raises:
        RequestError: another number of elements, codes that do not fit, no such pattern.
    """
    layout = element_layout(pattern)
    array = np.asarray(codes)
    if array.ndim == 0 or array.shape[-1] != layout.size or array.dtype.kind not in "iu":
        given = f"{array.dtype} of shape {array.shape}"
        raise invalid("codes", given, f"integers, {layout.size} in the last dimension")
    numbers = array.astype(np.int64)
    if numbers.size and ((numbers < 0) | (numbers >> layout.bits > 0)).any():
        raise invalid("codes", f"{numbers.min()} to {numbers.max()}", "codes from 0 to 2**bits - 1")
    # Bit b of a register is bit b - shift of the element it belongs to.
    element = np.repeat(np.arange(layout.size), layout.bits)
    places = np.arange(8 * REGISTER_BYTES) - layout.shifts[element]
    bits = (numbers[..., element] >> places) & 1
    return np.packbits(bits.astype(np.uint8), axis=-1, bitorder="little")


def unpack_registers(registers: NDArray[np.uint8], pattern: int | Pattern) -> NDArray[np.int64]:
    """The codes of registers.

    Args:
        registers: (..., 16) bytes, little-endian.
        pattern: as in ``element_layout``.

    Returns:
        (..., N) codes.
    """
    layout = element_layout(pattern)
    wide = np.ascontiguousarray(registers, dtype=np.uint8).view("<u8").astype(np.uint64)
    word = layout.shifts // 64
    inside = (layout.shifts % 64).astype(np.uint64)
    masks = (1 << layout.bits) - 1
    return (wide[..., word] >> inside).astype(np.int64) & masks


def register_number(register: NDArray[np.uint8]) -> int:
    """A register as one number of 128 bits."""
    return int.from_bytes(register.tobytes(), "little")


def register_bytes(number: int) -> NDArray[np.uint8]:
    """The register that is one number of 128 bits.

    Args:
        number: from 0 to 2**128 - 1.

    Raises:
        RequestError: another number.
    """
    if not 0 <= number < 1 << 8 * REGISTER_BYTES:
        raise invalid("number", number, "a number of 128 bits")
    return np.frombuffer(number.to_bytes(REGISTER_BYTES, "little"), dtype=np.uint8).copy()
