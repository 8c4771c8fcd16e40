"""Random numbers of a fault map: a function of seed, map and layer name, whatever else is drawn."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy
from numpy.typing import NDArray

__all__ = ["LanePrecision", "Limits", "Stream", "limits_of"]

LanePrecision = Literal[16, 32]
"""Bits of the number that is drawn for a cell."""

_LANES: dict[int, numpy.dtype[Any]] = {16: numpy.dtype("<u2"), 32: numpy.dtype("<u4")}


@dataclass(frozen=True)
class Stream:
    """The stream of one layer in one map.

    ``SeedSequence([seed, map, crc32(name)])`` starts a PCG64DXSM, whose 64-bit words are cut into
    lanes, the low ones first. The state can be moved ahead by any number of words at once.

    Args:
        seed: of all maps, 0 or more.
        map: number of the map, 0 or more.
        name: of the layer.
    """

    seed: int
    map: int
    name: str

    def generator(self) -> numpy.random.PCG64DXSM:
        """A generator at the start of the stream."""
        entropy = [self.seed, self.map, zlib.crc32(self.name.encode())]
        return numpy.random.PCG64DXSM(numpy.random.SeedSequence(entropy))

    def lanes(self, count: int, precision: LanePrecision = 16) -> NDArray[Any]:
        """The first lanes, unsigned integers of so many bits.

        Args:
            count: how many.
            precision: bits of a lane, 16 or 32.
        """
        dtype = _LANES[precision]
        words = -(-count * dtype.itemsize // 8)
        raw = self.generator().random_raw(words).astype("<u8", copy=False)
        return raw.view(dtype)[:count]

    def words(self, count: int) -> NDArray[numpy.uint64]:
        """The first 64-bit words."""
        return self.generator().random_raw(count)

    def uniforms(self, count: int) -> NDArray[numpy.float64]:
        """Numbers inside (0, 1), one a word."""
        return ((self.words(count) >> numpy.uint64(11)).astype(numpy.float64) + 0.5) * 2.0**-53

    def state(self) -> tuple[int, int]:
        """State and increment of the generator at the start, 128 bits each."""
        inner = self.generator().state["state"]
        return inner["state"], inner["inc"]


class Limits(NamedTuple):
    """What a lane is compared with.

    Args:
        low: (T0) a cell is stuck at HRS below it.
        high: (T1) a cell is stuck at LRS from it on.
        precision: bits of a lane.
    """

    low: int
    high: int
    precision: LanePrecision


def limits_of(hrs: float, lrs: float, precision: LanePrecision = 16) -> Limits:
    """The limits of two rates: ``T0 = round(2^bits hrs)``, ``T1 = 2^bits - round(2^bits lrs)``.

    A rate is met to 2^-17, or to 2^-33 with 32 bits.

    Args:
        hrs: probability of a cell that is stuck in the high-resistance state.
        lrs: of one in the low-resistance state.
        precision: bits of a lane.
    """
    whole = 1 << precision
    low = round(whole * hrs)
    return Limits(low, max(low, whole - round(whole * lrs)), precision)
