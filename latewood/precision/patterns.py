"""Precision patterns of 128-bit registers, and channels fitted to the patterns there are."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from latewood.errors import invalid
from latewood.precision.register_filling import MOST_ELEMENTS, fill_registers

__all__ = [
    "PATTERNS",
    "PATTERN_SETS",
    "Pattern",
    "PatternFit",
    "fit_channels",
    "fit_counts",
    "pattern_index",
    "pattern_set",
    "vectors_needed",
]

Pattern = tuple[int, int, int]
"""Granules of 16 bits that hold 4-bit, 2-bit and 1-bit elements; eight in all."""

GRANULES: Final = 8

PATTERNS: Final[tuple[Pattern, ...]] = tuple(
    (g4, g2, GRANULES - g4 - g2) for g4 in range(GRANULES + 1) for g2 in range(GRANULES + 1 - g4)
)
"""All 45 patterns (g4, g2, g1), by index ``g4 (19 - g4) / 2 + g2``."""

PATTERN_SETS: Final[dict[int, tuple[int, ...]]] = {
    4: (0, 8, 19, 44),
    8: (0, 4, 8, 19, 21, 32, 34, 44),
    45: tuple(range(45)),
}
"""Indices of the patterns that a number of patterns stands for.

Four are the three uniform ones and (2, 2, 4); eight add (0, 4, 4), (2, 4, 2), (4, 2, 2) and
(4, 4, 0), an even spread [I].
"""

_WIDTHS: Final = {1: 2, 2: 1, 3: 0, 4: 0}


@dataclass(frozen=True)
class PatternFit:
    """How the elements of a layer lie in registers.

    Args:
        vectors: registers in all.
        uses: pairs of a pattern's index and how many registers have it, by index.
        promoted: elements in a slot wider than they need.
        slots: elements for which there is room, in 4-bit, 2-bit and 1-bit slots.
        occupied: elements in those slots; the others are padding.
        bits: fitted bits of each channel, uint8; None where only counts were given.
    """

    vectors: int
    uses: tuple[tuple[int, int], ...]
    promoted: int
    slots: tuple[int, int, int]
    occupied: tuple[int, int, int]
    bits: Tensor | None = None

    @property
    def padding(self) -> tuple[int, int, int]:
        """Empty 4-bit, 2-bit and 1-bit slots."""
        first, second, third = (
            slots - elements for slots, elements in zip(self.slots, self.occupied, strict=True)
        )
        return first, second, third


def pattern_index(pattern: Pattern) -> int:
    """Index of a pattern in ``PATTERNS``: ``g4 (19 - g4) / 2 + g2``.

    Args:
        pattern: granules (g4, g2, g1) of 4-bit, 2-bit and 1-bit elements, 8 in all.

    Raises:
        RequestError: no such pattern.
    """
    expected = "three whole numbers of granules (g4, g2, g1) that add up to 8"
    try:
        g4, g2, g1 = (operator.index(granules) for granules in pattern)
    except (TypeError, ValueError):
        raise invalid("pattern", pattern, expected) from None
    if min(g4, g2, g1) < 0 or g4 + g2 + g1 != GRANULES:
        raise invalid("pattern", pattern, expected)
    return g4 * (19 - g4) // 2 + g2


def pattern_set(patterns: int | Iterable[int | Pattern]) -> tuple[int, ...]:
    """The patterns of a set as indices, each once, ascending.

    Args:
        patterns: 4, 8 or 45 for a set of ``PATTERN_SETS``; or indices from 0 to 44 and triples
            (g4, g2, g1), at least one. Doubles count once.

    Raises:
        RequestError: no patterns, or something that is none.
    """
    if not isinstance(patterns, Iterable):
        sizes = ", ".join(map(str, PATTERN_SETS))
        try:
            return PATTERN_SETS[operator.index(patterns)]
        except (TypeError, KeyError):
            raise invalid("patterns", patterns, f"{sizes}, or a list of patterns") from None
    indices = {_index_of(pattern) for pattern in patterns}
    if not indices:
        raise invalid("patterns", [], "at least one pattern")
    return tuple(sorted(indices))


def vectors_needed(counts: Sequence[int], patterns: int | Iterable[int | Pattern]) -> int:
    """Fewest registers that hold so many elements, each in a slot that is wide enough.

    An element may lie in a slot wider than it needs (it is promoted), never in a narrower one.

    Args:
        counts: elements (n4, n2, n1) of 4, 2 and 1 bits.
        patterns: as in ``pattern_set``.

    Returns:
        Number of registers; 0 for no elements.

    Raises:
        RequestError: other counts, no such patterns, or none with slots wide enough.

    Source:
        [I] from granules of 16 bits, which explain the 45 patterns of SySMOL.
    """
    return fit_counts(counts, patterns).vectors


def fit_counts(
    counts: Sequence[int], patterns: int | Iterable[int | Pattern], *, promote: bool = True
) -> PatternFit:
    """The registers of ``vectors_needed``: fewest, then fewest promoted, then lowest indices.

    Of several choices of patterns with as many registers and promoted elements, the one whose
    sorted list of indices comes first is taken.

    Args:
        counts: elements (n4, n2, n1) of 4, 2 and 1 bits.
        patterns: as in ``pattern_set``.
        promote: whether elements may lie in wider slots than they need.

    Raises:
        RequestError: other counts, no such patterns, or none with slots wide enough.
    """
    return _fit(_checked_counts(counts), pattern_set(patterns), 1, promote)


def fit_channels(
    bits: Tensor | Sequence[int],
    patterns: int | Iterable[int | Pattern],
    *,
    taps: int = 1,
    importance: Tensor | Sequence[float] | None = None,
    promote: bool = True,
) -> PatternFit:
    """Fits whole input channels to patterns, and says which of them are promoted.

    All taps of a channel have one precision, so a channel is promoted as a whole. With one tap this
    needs as many registers as ``vectors_needed``, with several it may need one more.

    Args:
        bits: of each input channel: 1, 2, 3 or 4, or 0 for a channel that has left the layer. Three
            bits become 4, for which alone there are slots; this does not count as promotion.
        patterns: as in ``pattern_set``.
        taps: elements of the dot product in one channel: kernel height times width, 1 for linear
            layers.
        importance: of each channel, such as its learned bits before they were rounded: the most
            important ones are promoted. Without it the last ones are.
        promote: whether channels may lie in wider slots than they need; codes that are final
            already cannot.

    Returns:
        The fit; its ``bits`` say for each channel the width of its slot (0 stays 0).

    Raises:
        RequestError: other bits, taps or patterns, or an importance of another length or with NaN.
    """
    channel_bits = _checked_bits(bits)
    try:
        tap_count = operator.index(taps)
    except TypeError:
        tap_count = 0
    if tap_count < 1:
        raise invalid("taps", taps, "a whole number, 1 or more")
    channels: list[list[int]] = [[], [], []]
    for channel in _by_importance(channel_bits, importance):
        width = channel_bits[channel]
        if width:
            channels[_WIDTHS[width]].append(channel)
            channel_bits[channel] = 4 if width == 3 else width
    n4, n2, n1 = (len(members) for members in channels)
    fit = _fit((n4, n2, n1), pattern_set(patterns), tap_count, promote)
    from2_to4, from1_to4, from1_to2 = _promotions((n4, n2, n1), fit.slots, tap_count)
    for channel in channels[1][:from2_to4]:
        channel_bits[channel] = 4
    for channel in channels[2][:from1_to4]:
        channel_bits[channel] = 4
    for channel in channels[2][from1_to4 : from1_to4 + from1_to2]:
        channel_bits[channel] = 2
    return PatternFit(
        fit.vectors,
        fit.uses,
        fit.promoted,
        fit.slots,
        fit.occupied,
        torch.tensor(channel_bits, dtype=torch.uint8),
    )


def _fit(channels: Pattern, indices: tuple[int, ...], taps: int, promote: bool) -> PatternFit:
    n4, n2, n1 = channels
    _require_slots(channels, indices, promote)
    if taps * (n4 + n2 + n1) > MOST_ELEMENTS:
        raise invalid("counts", taps * (n4 + n2 + n1), f"at most {MOST_ELEMENTS:,} elements")
    chosen = fill_registers(channels, [PATTERNS[index] for index in indices], taps, promote=promote)
    uses = tuple((index, times) for index, times in zip(indices, chosen, strict=True) if times > 0)
    g4, g2, g1 = (
        sum(PATTERNS[index][place] * times for index, times in uses) for place in range(3)
    )
    slots = (4 * g4, 8 * g2, 16 * g1)
    from2_to4, from1_to4, from1_to2 = _promotions(channels, slots, taps)
    in4 = n4 + from2_to4 + from1_to4
    in2 = n2 - from2_to4 + from1_to2
    in1 = n1 - from1_to4 - from1_to2
    return PatternFit(
        vectors=sum(times for _, times in uses),
        uses=uses,
        promoted=taps * (from2_to4 + from1_to4 + from1_to2),
        slots=slots,
        occupied=(taps * in4, taps * in2, taps * in1),
    )


def _promotions(channels: Pattern, slots: tuple[int, int, int], taps: int) -> Pattern:
    """Channels that go from 2 to 4, from 1 to 4 and from 1 to 2 bits; no wider than they must."""
    _, n2, n1 = channels
    room2, room1 = slots[1] // taps, slots[2] // taps
    from2, from1 = max(0, n2 - room2), max(0, n1 - room1)
    from1_to2 = min(from1, max(0, room2 - n2))
    return from2, from1 - from1_to2, from1_to2


def _require_slots(counts: Pattern, indices: tuple[int, ...], promote: bool) -> None:
    there = {
        bits
        for index in indices
        for bits, granules in zip((4, 2, 1), PATTERNS[index], strict=True)
        if granules
    }
    for bits, count in zip((4, 2, 1), counts, strict=True):
        wide_enough = max(there) >= bits if promote else bits in there
        if count and not wide_enough:
            shown = [PATTERNS[index] for index in indices]
            raise invalid("patterns", shown, f"one with slots for {count} times {bits} bits")


def _index_of(pattern: int | Pattern) -> int:
    if isinstance(pattern, Iterable) and not isinstance(pattern, str):
        return pattern_index(pattern)
    try:
        index = operator.index(pattern)
    except TypeError:
        index = -1
    if isinstance(pattern, bool) or not 0 <= index < len(PATTERNS):
        raise invalid("patterns", pattern, "indices from 0 to 44 or triples (g4, g2, g1)")
    return index


def _checked_counts(counts: Sequence[int]) -> Pattern:
    expected = "three whole numbers (n4, n2, n1), 0 or more"
    try:
        n4, n2, n1 = (operator.index(count) for count in counts)
    except (TypeError, ValueError):
        raise invalid("counts", counts, expected) from None
    if min(n4, n2, n1) < 0:
        raise invalid("counts", (n4, n2, n1), expected)
    return n4, n2, n1


def _checked_bits(bits: Tensor | Sequence[int]) -> list[int]:
    expected = "one of 0, 1, 2, 3, 4 for each channel"
    listed = bits.flatten().tolist() if isinstance(bits, Tensor) else list(bits)
    try:
        widths = [operator.index(width) for width in listed]
    except TypeError:
        raise invalid("bits", bits, expected) from None
    if outside := sorted({width for width in widths if not 0 <= width <= 4}):
        raise invalid("bits", outside, expected)
    return widths


def _by_importance(bits: list[int], importance: Tensor | Sequence[float] | None) -> Iterable[int]:
    if importance is None:
        return range(len(bits) - 1, -1, -1)
    values = torch.as_tensor(importance, dtype=torch.float64).flatten()
    if len(values) != len(bits) or bool(values.isnan().any()):
        given = f"{len(values)} numbers, {int(values.isnan().sum())} of them NaN"
        raise invalid("importance", given, f"a number for each of {len(bits)} channels")
    numbers: list[float] = values.tolist()
    return sorted(range(len(bits)), key=lambda channel: (-numbers[channel], -channel))
