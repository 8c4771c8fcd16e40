"""How a quantity moves over a run: pure functions of progress in [0, 1]."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Final

from latewood.errors import invalid

__all__ = [
    "SCHEDULES",
    "Schedule",
    "constant",
    "cosine",
    "cubic",
    "exponential",
    "linear",
    "progress",
    "schedule",
    "step_decay",
    "with_warmup",
]

Schedule = Callable[[float], float]
"""A value at each progress in [0, 1]."""


def progress(step: int, total: int) -> float:
    """How far a run has come: 0 at the first of its steps, exactly 1 at the last and after it.

    step / (total - 1); a run of one step is at its end from the start.

    Args:
        step: steps (or epochs) done before this one, from 0.
        total: steps (or epochs) of the whole run.

    Returns:
        Progress in [0, 1].

    Raises:
        RequestError: step is negative or total is not positive.
    """
    if total < 1:
        raise invalid("total", total, "a positive number of steps")
    if step < 0:
        raise invalid("step", step, "a number of steps, 0 or more")
    return 1.0 if step >= total - 1 else step / (total - 1)


def constant(value: float = 1.0) -> Schedule:
    """The same value all along."""
    _require_finite(value=value)
    return lambda at: _mix(value, value, _checked(at))


def linear(start: float = 1.0, end: float = 0.0) -> Schedule:
    """A straight line, (1 - p) start + p end.

    Args:
        start: value at progress 0, met exactly.
        end: value at progress 1, met exactly.
    """
    _require_finite(start=start, end=end)
    return lambda at: _mix(start, end, 1.0 - _checked(at))


def cosine(start: float = 1.0, end: float = 0.0) -> Schedule:
    """Half a cosine wave, end + (start - end) (1 + cos(pi p)) / 2.

    Args:
        start: value at progress 0, met exactly.
        end: value at progress 1 (the floor), met exactly.

    Source:
        Loshchilov and Hutter, SGDR, ICLR 2017, equation 5.
    """
    _require_finite(start=start, end=end)
    return lambda at: _mix(start, end, 0.5 * (1.0 + math.cos(math.pi * _checked(at))))


def exponential(start: float, end: float) -> Schedule:
    """A constant growth factor, start ** (1 - p) * end ** p.

    Args:
        start: value at progress 0, positive, met exactly.
        end: value at progress 1, positive, met exactly.

    Raises:
        RequestError: an end point is not positive.

    Source:
        The temperature of continuous sparsification (arXiv 1912.04427): exponential(1, 200).
    """
    _require_finite(start=start, end=end)
    for name, value in (("start", start), ("end", end)):
        if value <= 0.0:
            raise invalid(name, value, "a positive number")

    def value_at(at: float) -> float:
        return float(start ** (1.0 - _checked(at)) * end**at)

    return value_at


def cubic(start: float = 0.0, end: float = 1.0) -> Schedule:
    """A ramp that moves fast first and slowly last, end + (start - end) (1 - p)^3.

    Args:
        start: value at progress 0, met exactly.
        end: value at progress 1, met exactly.

    Source:
        Zhu and Gupta, To prune or not to prune (arXiv 1710.01878), equation 1.
    """
    _require_finite(start=start, end=end)
    return lambda at: _mix(start, end, (1.0 - _checked(at)) ** 3)


def step_decay(
    milestones: Sequence[float] = (0.5, 0.75), factor: float = 0.1, start: float = 1.0
) -> Schedule:
    """A staircase, start * factor ** (number of milestones reached).

    Args:
        milestones: fractions of the run in (0, 1), increasing; one counts once p reaches it.
        factor: positive multiplier at each milestone.
        start: value before the first milestone.

    Raises:
        RequestError: milestones outside (0, 1) or out of order, or a factor that is not positive.
    """
    _require_finite(factor=factor, start=start)
    marks = tuple(float(mark) for mark in milestones)
    if any(not 0.0 < mark < 1.0 for mark in marks) or list(marks) != sorted(set(marks)):
        raise invalid("milestones", list(milestones), "increasing fractions of the run in (0, 1)")
    if factor <= 0.0:
        raise invalid("factor", factor, "a positive number")

    def value_at(at: float) -> float:
        return float(start * factor ** sum(_checked(at) >= mark for mark in marks))

    return value_at


def with_warmup(after: Schedule, fraction: float, start: float = 0.0) -> Schedule:
    """Rises in a line to the first value of a schedule, which then runs over what is left.

    Args:
        after: the schedule; it sees progress 0 at the end of the warm-up and 1 at the end.
        fraction: length of the warm-up as a fraction of the run, in [0, 1).
        start: where the line begins, as a multiple of the schedule's first value.

    Raises:
        RequestError: fraction is outside [0, 1).
    """
    _require_finite(start=start)
    if not 0.0 <= fraction < 1.0:
        raise invalid("fraction", fraction, "a fraction of the run in [0, 1)")

    def value_at(at: float) -> float:
        if _checked(at) < fraction:
            return after(0.0) * _mix(start, 1.0, 1.0 - at / fraction)
        return after(min(1.0, (at - fraction) / (1.0 - fraction)))

    return value_at


SCHEDULES: Final[dict[str, Callable[..., Schedule]]] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "exponential": exponential,
    "cubic": cubic,
    "step_decay": step_decay,
}
"""The schedules a recipe can name."""


def schedule(
    name: str, *, warmup: float = 0.0, warmup_start: float = 0.0, **arguments: object
) -> Schedule:
    """Builds a schedule from its name, as a recipe writes it.

    Args:
        name: one of SCHEDULES.
        warmup: fraction of the run spent rising to the first value, in [0, 1).
        warmup_start: where the rise begins, as a multiple of the first value.
        **arguments: what the named schedule takes.

    Raises:
        RequestError: an unknown name, or arguments the schedule does not take.
    """
    if name not in SCHEDULES:
        raise invalid("schedule", name, f"one of {', '.join(SCHEDULES)}")
    signature = inspect.signature(SCHEDULES[name])
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise invalid(
            f"schedule {name}", arguments, f"the arguments {', '.join(signature.parameters)}"
        ) from error
    built = SCHEDULES[name](**arguments)
    return with_warmup(built, warmup, warmup_start) if warmup else built


def _mix(start: float, end: float, weight: float) -> float:
    """Meets both ends exactly, which end + (start - end) * weight does not in floating point."""
    return weight * start + (1.0 - weight) * end


def _checked(at: float) -> float:
    if not 0.0 <= at <= 1.0:
        raise invalid("progress", at, "a number in [0, 1]")
    return at


def _require_finite(**values: float) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise invalid(name, value, "a finite number")
