"""When a network grows and how wide it is then: by epochs, once and late, or by its loss."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from latewood.errors import RequestError, invalid, require_count
from latewood.growth.schedules import epoch_schedule, round_to_even, width_schedule

__all__ = [
    "GROWTH_SCHEDULES",
    "GrowthSchedule",
    "Plateau",
    "explicit",
    "growth_schedule",
    "late",
    "phased",
    "plateau",
]

FinalWidths = float | Mapping[str, int]
"""How many times the present widths, or final widths by the name of a layer or of a group."""


@dataclass(frozen=True, kw_only=True)
class Plateau:
    """A network grows when its loss stops falling.

    Args:
        patience: epochs without improvement.
        threshold: the loss of an epoch improves on the best one by more than this share of it.
        latest: share of the run by which the last phase begins in any case, those before it by
            equal parts of that.
    """

    patience: int = 2
    threshold: float = 0.01
    latest: float = 0.75

    def __post_init__(self) -> None:
        require_count("schedule.patience", self.patience)
        if not 0.0 <= self.threshold < 1.0:
            raise invalid("schedule.threshold", self.threshold, "a share of the loss, in [0, 1)")
        if not 0.0 < self.latest < 1.0:
            raise invalid("schedule.latest", self.latest, "a share of the run, in (0, 1)")


@dataclass(frozen=True, kw_only=True)
class GrowthSchedule:
    """The phases of a growing run.

    Args:
        phases: how many (N), one more than growth events.
        widths: the widths of a group in all phases, by its name and its present width; None for a
            group that stays as it is.
        named: names of layers or groups that ``widths`` knows; () if it takes every group.
        starts: the epochs at which the phases begin, by the number of the run's epochs; with
            ``plateau`` the latest ones.
        plateau: grow when the loss stops falling; None grows at ``starts``.
    """

    phases: int
    widths: Callable[[str, int], list[int] | None]
    named: tuple[str, ...] = ()
    starts: Callable[[int], list[int]]
    plateau: Plateau | None = field(default=None)


def phased(
    *,
    end: FinalWidths,
    phases: int = 9,
    rate: float = 0.2,
    epochs: Sequence[int] | None = None,
    first: int | None = None,
    epoch_rate: float = 0.2,
    align: int = 2,
) -> GrowthSchedule:
    """Phases of growing widths and lengths, as in the paper.

    Args:
        end: how many times the present widths the final ones are, or the final widths by layer or
            group.
        phases: (N).
        rate: (p_c) growth of a width from phase to phase; the last takes it to its end.
        epochs: of each phase; None takes ``first`` and ``epoch_rate``.
        first: (T_0) epochs of the first phase, from which the lengths follow by the paper's rule;
            None makes all of them, the last too, follow the rate as nearly as whole epochs do.
        epoch_rate: (p_t) growth of a phase's length; with ``first`` the last takes what is left.
        align: widths on the way are multiples of this even number.

    Raises:
        RequestError: an argument out of range.

    Source: Yuan, Savarese and Maire (arXiv 2306.12700); the rules are recalled.
    """
    _require_phases(phases)
    if epochs is not None:
        if first is not None:
            raise RequestError("schedule.epochs, schedule.first: got both; expected one of them")
        lengths = _lengths(epochs, phases)
        return GrowthSchedule(
            phases=phases,
            **_widths(end, phases, rate, align),
            starts=lambda total: _starts(lengths, total),
        )
    if not 0.0 <= epoch_rate < math.inf:
        raise invalid("schedule.epoch_rate", epoch_rate, "a finite number, 0 or more")
    if first is not None:
        require_count("schedule.first", first)

    def starts(total: int) -> list[int]:
        if first is None:
            return _proportional(phases, epoch_rate, total)
        try:
            return _starts(epoch_schedule(total, first, phases, epoch_rate), total)
        except RequestError as error:
            raise RequestError(
                f"schedule: got {phases} phases in {total} epochs: {error}"
            ) from error

    return GrowthSchedule(phases=phases, **_widths(end, phases, rate, align), starts=starts)


def late(*, end: FinalWidths = 2.0, at: float = 0.6) -> GrowthSchedule:
    """One widening, late in the run.

    Args:
        end: how many times the present widths the final ones are, or the final widths.
        at: share of the run after which it comes, in (0, 1), at the nearest epoch's start.

    Raises:
        RequestError: an argument out of range.
    """
    if not 0.0 < at < 1.0:
        raise invalid("schedule.at", at, "a share of the run, in (0, 1)")

    def starts(total: int) -> list[int]:
        event = math.floor(at * total + 0.5)
        if not 0 < event < total:
            raise invalid("schedule.at", at, f"a share that leaves epochs on both sides of {total}")
        return [0, event]

    return GrowthSchedule(phases=2, **_widths(end, 2, 1.0, 2), starts=starts)


def plateau(
    *,
    end: FinalWidths,
    phases: int = 3,
    rate: float = 0.5,
    patience: int = 2,
    threshold: float = 0.01,
    latest: float = 0.75,
    align: int = 2,
) -> GrowthSchedule:
    """Grows when the loss stops falling, and in time in any case; ours.

    Args:
        end: how many times the present widths the final ones are, or the final widths.
        phases: (N).
        rate: growth of a width from phase to phase; the last takes it to its end.
        patience: epochs without improvement (``Plateau``).
        threshold: of an improvement, as a share of the loss.
        latest: share of the run by which the last phase begins in any case.
        align: widths on the way are multiples of this even number.

    Raises:
        RequestError: an argument out of range.
    """
    _require_phases(phases)
    trigger = Plateau(patience=patience, threshold=threshold, latest=latest)

    def starts(total: int) -> list[int]:
        steps = [math.ceil(latest * total * number / (phases - 1)) for number in range(phases)]
        if len(set(steps)) < phases or steps[-1] >= total:
            raise invalid(
                "schedule.phases", phases, f"fewer phases, or more than {total} epochs for them"
            )
        return steps

    return GrowthSchedule(
        phases=phases, **_widths(end, phases, rate, align), starts=starts, plateau=trigger
    )


def explicit(*, widths: Mapping[str, Sequence[int]], epochs: Sequence[int]) -> GrowthSchedule:
    """Widths and epochs of every phase, as they are given.

    Args:
        widths: by the name of a layer or a group, its width in each phase; the first is the present
            one.
        epochs: of each phase.

    Raises:
        RequestError: lists of different lengths, or widths that shrink or take odd steps.
    """
    phases = len(list(epochs))
    _require_phases(phases)
    lengths = _lengths(epochs, phases)
    if not isinstance(widths, Mapping) or not widths:
        raise invalid("schedule.widths", widths, "widths by the name of a layer or a group")
    for name, listed in widths.items():
        for width in listed:
            require_count(f"schedule.widths[{name!r}]", width)
        steps = [after - before for before, after in itertools.pairwise(listed)]
        if len(listed) != phases or any(step < 0 or step % 2 for step in steps):
            raise invalid(
                f"schedule.widths[{name!r}]",
                list(listed),
                f"{phases} widths, one a phase, that grow by even numbers or stay",
            )

    def of_group(name: str, width: int) -> list[int] | None:
        listed = widths.get(name)
        if listed is None:
            return None
        if listed[0] != width:
            raise invalid(
                f"schedule.widths[{name!r}]", list(listed), f"the present width {width} first"
            )
        return list(listed)

    return GrowthSchedule(
        phases=phases,
        widths=of_group,
        named=tuple(widths),
        starts=lambda total: _starts(lengths, total),
    )


GROWTH_SCHEDULES: Final[dict[str, Callable[..., GrowthSchedule]]] = {
    "phased": phased,
    "late": late,
    "plateau": plateau,
    "explicit": explicit,
}
"""The schedules a recipe can name."""


def growth_schedule(
    section: GrowthSchedule | Mapping[str, Any] | str,
) -> GrowthSchedule:
    """A schedule from what a recipe writes: a name, or a table of a name and arguments.

    Args:
        section: ``{"name": one of GROWTH_SCHEDULES, argument: value, ...}``; a schedule is returned
            as it is.

    Raises:
        RequestError: an unknown name, or arguments that it does not take.
    """
    if isinstance(section, GrowthSchedule):
        return section
    arguments = {"name": section} if isinstance(section, str) else section
    if not isinstance(arguments, Mapping):
        raise invalid("schedule", section, "a name, or a table with a name")
    arguments = dict(arguments)
    name = arguments.pop("name", None)
    if name not in GROWTH_SCHEDULES:
        raise invalid("schedule.name", name, f"one of {', '.join(GROWTH_SCHEDULES)}")
    signature = inspect.signature(GROWTH_SCHEDULES[name])
    try:
        signature.bind(**arguments)
    except TypeError as error:
        allowed = ", ".join(signature.parameters)
        raise invalid(
            f"schedule {name}", arguments, f"the arguments {allowed} ({error})"
        ) from error
    try:
        return GROWTH_SCHEDULES[name](**arguments)
    except TypeError as error:
        raise invalid(
            f"schedule {name}", arguments, f"values of the right types ({error})"
        ) from error


def _widths(end: FinalWidths, phases: int, rate: float, align: int) -> dict[str, Any]:
    """The two fields of a schedule that say how wide groups become."""
    if isinstance(end, Mapping):
        for name, width in end.items():
            require_count(f"schedule.end[{name!r}]", width)
        finals = dict(end)
    elif isinstance(end, bool) or not isinstance(end, int | float) or not 1.0 < end < math.inf:
        raise invalid("schedule.end", end, "a number above 1, or final widths by layer or group")
    # Refused here, whatever widths come later.
    try:
        width_schedule(2, 4, phases, rate, align=align)
    except RequestError as error:
        raise RequestError(f"schedule.{error}") from error

    def of_group(name: str, width: int) -> list[int] | None:
        if isinstance(end, Mapping):
            if name not in finals:
                return None
            final = finals[name]
            if final < width or (final - width) % 2:
                nearest = f"{max(width, final - 1)} or {final + 1}" if final > width else f"{width}"
                raise invalid(
                    f"schedule.end[{name!r}]",
                    final,
                    f"a width from {width} in steps of 2, such as {nearest}",
                )
        else:
            final = width + max(2, round_to_even((end - 1) * width))
        fitting = align if width % 2 == 0 else 2
        return width_schedule(width, final, phases, rate, align=fitting)

    named = tuple(end) if isinstance(end, Mapping) else ()
    return {"widths": of_group, "named": named}


def _require_phases(phases: int) -> None:
    require_count("schedule.phases", phases)
    if phases < 2:
        raise invalid("schedule.phases", phases, "at least 2, since one phase does not grow")


def _lengths(epochs: Sequence[int], phases: int) -> list[int]:
    lengths = list(epochs)
    for length in lengths:
        require_count("schedule.epochs", length)
    if len(lengths) != phases:
        raise invalid("schedule.epochs", lengths, f"{phases} numbers of epochs, one a phase")
    return lengths


def _proportional(phases: int, rate: float, total: int) -> list[int]:
    """The starts of phases whose lengths grow at a rate and fill the run; an epoch each at least.

    Raises:
        RequestError: there are fewer epochs than phases.
    """
    if total < phases:
        raise invalid("schedule.phases", phases, f"at most {total}, an epoch each")
    lengths = [(1.0 + rate) ** phase for phase in range(phases)]
    starts = [0]
    for phase, end in enumerate(itertools.accumulate(lengths[:-1]), start=1):
        nearest = math.floor(total * end / sum(lengths) + 0.5)
        starts.append(min(max(nearest, starts[-1] + 1), total - phases + phase))
    return starts


def _starts(lengths: Sequence[int], total: int) -> list[int]:
    if sum(lengths) != total:
        ends = "before" if sum(lengths) < total else "after"
        raise invalid(
            "schedule.epochs",
            list(lengths),
            f"{total} epochs in all: it ends {ends} the run does ({sum(lengths)} epochs)",
        )
    return [sum(lengths[:number]) for number in range(len(lengths))]
