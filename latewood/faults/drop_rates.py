"""The rate of drop-connect over the steps of a training."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from torch import Tensor

from latewood.core import Epochs, linear
from latewood.errors import invalid
from latewood.kernels.faults import Stream

__all__ = ["Rate", "RateRamp", "checked_rate", "rate_at"]


@dataclass(frozen=True)
class RateRamp:
    """A rate that rises or falls in a line, then stays.

    Args:
        start: rate of the first step, in [0, 1].
        end: rate from ``until`` on, in [0, 1].
        until: fraction of the run after which ``end`` is reached, in (0, 1].
    """

    start: float = 0.0
    end: float = 0.3
    until: float = 0.5

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            _require_rate(f"rate.{name}", getattr(self, name))
        if not _is_number(self.until) or not 0.0 < self.until <= 1.0:
            raise invalid("rate.until", self.until, "a fraction of the run in (0, 1]")


Rate = float | tuple[float, float] | RateRamp | Callable[[float], float]
"""One rate, the ends between which each draw takes one, a ramp, or a function of progress."""


def checked_rate(rate: Rate, epochs: Epochs) -> Rate:
    """Refuses what is no rate.

    Args:
        rate: what was given.
        epochs: of the run, whose length ramps and functions need.

    Raises:
        RequestError: it is none, or the length of the run is not known.
    """
    if isinstance(rate, tuple | list):
        if len(rate) != 2:
            raise invalid("rate", rate, "two rates, the ends between which one is drawn")
        for end in rate:
            _require_rate("rate", end)
        if rate[0] > rate[1]:
            raise invalid("rate", rate, "the lower rate first")
        return float(rate[0]), float(rate[1])
    if isinstance(rate, RateRamp) or callable(rate):
        epochs.progress(0)  # refuses a run without an end
        return rate
    _require_rate("rate", rate)
    return float(rate)


def rate_at(rate: Rate, step: int, epochs: Epochs, stream: Stream) -> float:
    """The rate of a step.

    Args:
        rate: checked.
        step: updates so far.
        epochs: of the run.
        stream: that a rate between two ends is drawn from.

    Raises:
        RequestError: a function that gives no rate.
    """
    if isinstance(rate, tuple):
        low, high = rate
        return low + (high - low) * float(stream.uniforms(1)[0])
    if isinstance(rate, RateRamp):
        return linear(rate.start, rate.end)(min(1.0, epochs.progress(step) / rate.until))
    if callable(rate):
        value: object = rate(epochs.progress(step))
        if isinstance(value, Tensor) and value.numel() == 1:
            value = value.item()
        _require_rate(f"rate at step {step}", value)
        return float(cast(float, value))
    return rate


def _require_rate(name: str, value: object) -> None:
    if not _is_number(value) or not 0.0 <= value <= 1.0:  # type: ignore[operator]
        raise invalid(name, value, "a rate in [0, 1]")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
