"""How widths, epochs and batch sizes move over the phases of a growing run: plain lists."""

from __future__ import annotations

import math
from numbers import Real

from latewood.errors import RequestError, invalid

__all__ = ["batch_schedule", "epoch_schedule", "round_to_even", "width_schedule"]


def round_to_even(value: float) -> int:
    r"""The nearest even integer, :math:`2 \lfloor x / 2 + 1/2 \rfloor`; from odd ones upwards.

    Args:
        value: any finite number.
    """
    return 2 * math.floor(value / 2 + 0.5)


def width_schedule(
    start: int, end: int, phases: int = 9, rate: float = 0.2, *, align: int = 2
) -> list[int]:
    r"""Widths of a channel group, phase by phase.

    .. math::
        C_t = \min(C_{N-1},\; C_{t-1} + \mathrm{round}_2(p\, C_{t-1})), \quad 0 < t < N - 1

    and the last phase has the full width. Every increment is even, since channels are added in
    pairs, and at least 2; a width that reaches the full one stays. So ``start`` and ``end`` are
    both even or both odd. The rule is recalled from the paper; its floor of 2 and ``align``
    are ours.

    Args:
        start: width of the first phase, in channels.
        end: full width; at least ``start``.
        phases: number of phases (N), one more than growth events.
        rate: growth of a phase relative to the one before (p), above 0.
        align: an even number; widths between the first and the last are the nearest multiple of
            it that is above the width before (kernels are fast at multiples of 8 or 16). Widths
            that do not follow from ``start`` in steps of 2 are never chosen: an odd ``start``
            takes 2 only.

    Returns:
        ``phases`` widths, ascending.

    Raises:
        RequestError: an argument out of its range, or an end that pairs do not reach.

    Source: Yuan, Savarese and Maire (arXiv 2306.12700); start = end / 4, nine phases and rate 0.2
    reproduce the training cost of its tables.
    """
    _require_whole("start", start, 1)
    _require_whole("end", end, start)
    _require_whole("phases", phases, 1)
    _require_rate(rate)
    _require_whole("align", align, 2)
    if align % 2:
        raise invalid("align", align, "an even number, since channels are added in pairs")
    if align > 2 and start % 2:
        raise invalid("align", align, f"2 where the first width is odd ({start})")
    if (end - start) % 2:
        raise invalid(
            "end", end, f"{end - 1} or {end + 1}: from {start} channels are added in pairs"
        )
    if phases == 1 and start != end:
        raise invalid("phases", phases, f"at least 2 to grow from {start} to {end}")
    widths = [start]
    while len(widths) < phases - 1:
        before = widths[-1]
        wanted = before + max(2, round_to_even(rate * before))
        if align > 2:
            wanted = max(align * math.floor(wanted / align + 0.5), align * (before // align + 1))
        widths.append(min(end, wanted))
    return [*widths, end][:phases]


def epoch_schedule(total: int, first: int, phases: int = 9, rate: float = 0.2) -> list[int]:
    r"""Epochs of every phase.

    .. math::
        T_t = T_{t-1} + \mathrm{round}(p\, T_{t-1}), \quad 0 < t < N - 1

    and the last phase has what is left of the total.

    Args:
        total: epochs of the run.
        first: epochs of the first phase.
        phases: number of phases (N).
        rate: growth of a phase relative to the one before (p), 0 or more.

    Returns:
        ``phases`` numbers of epochs that sum to ``total``.

    Raises:
        RequestError: an argument out of its range, or nothing left for the last phase.

    Source: Yuan, Savarese and Maire (arXiv 2306.12700), recalled.
    """
    _require_whole("total", total, 1)
    _require_whole("first", first, 1)
    _require_whole("phases", phases, 1)
    _require_rate(rate, zero=True)
    epochs = [first]
    while len(epochs) < phases - 1:
        epochs.append(epochs[-1] + _rounded(rate * epochs[-1]))
    spent = sum(epochs) if phases > 1 else 0
    if spent >= total:
        raise RequestError(
            f"total: got {total!r}; expected at least {spent + 1}: the phases before the last take "
            f"{spent} epochs (first={first!r}, phases={phases!r}, rate={rate!r})"
        )
    return [*epochs, total - spent] if phases > 1 else [total]


def batch_schedule(base: int, phases: int = 9, rate: float = 0.2) -> list[int]:
    r"""Batch size of every phase: narrow networks get larger batches, so that a machine is filled.

    .. math:: B_{N-1} = B, \qquad B_{t-1} = B_t + \mathrm{round}(p\, B_t)

    Args:
        base: batch size of the last phase, in samples.
        phases: number of phases (N).
        rate: growth from a phase to the one before it (p), 0 or more.

    Returns:
        ``phases`` batch sizes, descending.

    Raises:
        RequestError: an argument out of its range.

    Source: Yuan, Savarese and Maire (arXiv 2306.12700), recalled.
    """
    _require_whole("base", base, 1)
    _require_whole("phases", phases, 1)
    _require_rate(rate, zero=True)
    sizes = [base]
    while len(sizes) < phases:
        sizes.append(sizes[-1] + _rounded(rate * sizes[-1]))
    return sizes[::-1]


def _rounded(value: float) -> int:
    # Not Python's round, which takes halves to even numbers.
    return math.floor(value + 0.5)


def _require_whole(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise invalid(name, value, f"an integer of at least {least}")


def _require_rate(value: object, *, zero: bool = False) -> None:
    bound = "of at least 0" if zero else "above 0"
    if (
        isinstance(value, bool)
        or not isinstance(value, Real)
        or not math.isfinite(value)
        or value < 0
        or (value == 0 and not zero)
    ):
        raise invalid("rate", value, f"a finite number {bound}")
