"""When a probe observes: every so many steps, at the ends of epochs, or in a fraction of the time.

Also how much of the model each observation covers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from latewood.core import Epochs, StepsPerEpoch
from latewood.errors import RequestError, invalid
from latewood.spectra.tracking.shards import Shards

__all__ = ["Every", "ObservationExtent", "ObservationSchedule", "ObservationSettings"]

Every = int | Literal["epoch", "auto"]

# Steps between two times that processes agree on whether "auto" observes.
_AGREE_EVERY = 10


@dataclass(frozen=True)
class ObservationSettings:
    """When a probe observes, and how much of the model each time.

    Args:
        every: number of steps between two observations; "epoch" for its ends; "auto" for as often
            as ``budget`` allows, which depends on the machine's speed.
        full_every: every how many observations all singular values are computed; those between
            track the first few from the last observation, each certified by its residual or
            computed anew. 1 is exact. The first observation and that of ``total_steps`` are always
            full.
        parts: observations that share the matrices: each takes the next part of them, and of the
            pairs, so that no step waits for all. The first observation and that of ``total_steps``
            take everything.
        steps_per_epoch: length of every epoch, or of each, for "epoch".
        total_steps: last step of the training, which "auto" always observes; None if nobody knows.
        budget: fraction of the wall-clock time, in (0, 1), that "auto" may take, a worker's
            processor time included. The first and the last observation are made in any case.

    Raises:
        RequestError: a value that is not allowed, or "epoch" without its length.
    """

    every: Every
    full_every: int = 1
    parts: int = 1
    steps_per_epoch: StepsPerEpoch | None = None
    total_steps: int | None = None
    budget: float = 0.03

    def __post_init__(self) -> None:
        if self.every not in ("epoch", "auto") and (
            not isinstance(self.every, int) or self.every < 1
        ):
            raise invalid("every", self.every, 'an integer of at least 1, "epoch" or "auto"')
        if self.every == "epoch" and self.steps_per_epoch is None:
            raise RequestError(
                'steps_per_epoch: got None with every="epoch"; expected the number of steps'
            )
        for name in ("full_every", "parts"):
            if getattr(self, name) < 1:
                raise invalid(name, getattr(self, name), "an integer of at least 1")
        if self.steps_per_epoch is not None:
            Epochs(self.steps_per_epoch, self.total_steps)
        if not 0 < self.budget < 1:
            raise invalid("budget", self.budget, "a number between 0 and 1")


@dataclass(frozen=True)
class ObservationExtent:
    """How much of the model one observation covers.

    Args:
        turn: which of the parts that take turns is due, to be taken modulo their number; None for
            the whole model.
        full: whether all singular values are wanted, or the leading ones do.
    """

    turn: int | None
    full: bool


class ObservationSchedule:
    """Decides at which steps a probe observes, and measures what observing costs.

    With "auto" an observation is due when all that was spent so far and this one, if it cost twice
    as much as the dearest of the last three, fit into the budget of the wall-clock time since the
    first question. The first question and the last step of the training are always answered; room
    for the last is kept. Of short steps even questions take a fraction, so most are passed over
    without a look at the clock, and the step behind an observation is slower than others, with
    caches that hold something else; both are counted.

    Args:
        settings: when to observe, and how much.
        shards: the processes that must agree on it.
    """

    def __init__(self, settings: ObservationSettings, shards: Shards | None = None) -> None:
        self.settings = settings
        self.count = 0
        """Observations so far."""
        self.spent = 0.0
        """Seconds that went into observing and asking."""
        self._shards = shards or Shards(wanted=False)
        self._auto = settings.every == "auto"
        period = settings.steps_per_epoch if settings.every == "epoch" else settings.every
        self._periods = None if period is None or isinstance(period, str) else Epochs(period)
        self._start: float | None = None
        self._recent: list[float] = []
        self._earliest = 0.0
        self._to_pass, self._passed = 0, 0
        self._last = math.nan
        self._behind_observation = False
        self._step_seconds = math.nan
        self._pass_seconds = self._seconds_to_pass()

    def passes(self, step: int) -> bool:
        """Whether "auto" knows without a look at the clock that ``step`` is not due.

        Args:
            step: number of updates.
        """
        if self._to_pass and step != self.settings.total_steps:
            self._to_pass -= 1
            self._passed += 1
            return True
        return False

    def quiet(self, step: int, since: float) -> bool:
        """Whether "auto" already knows that ``step`` is not due.

        Args:
            step: number of updates.
            since: when the question began, by ``time.perf_counter``.
        """
        if self._shards.wanted or not self._auto:
            return False
        self._hear(since)
        if since >= self._earliest or step == self.settings.total_steps:
            return False
        if self._step_seconds > 0:
            # Half of the steps until then: however they change, the time is not missed by much.
            self._to_pass = int((self._earliest - since) / (2 * self._step_seconds))
        self._last = time.perf_counter()
        # As much again for the call itself, which no clock inside it sees.
        self.spent += 2 * (self._last - since)
        return True

    def due(self, step: int, *, busy: bool = False) -> bool:
        """Whether to observe after ``step`` updates; the same in all processes.

        Args:
            step: number of updates.
            busy: whether an observation is still under way, whose cost nobody knows yet; "auto"
                waits.
        """
        self._last = math.nan
        if not (self._auto and self._shards.active):
            return self._due_here(step, busy=busy)
        if step % _AGREE_EVERY and step != self.settings.total_steps and self.count:
            return False
        return self._shards.agreed(self._due_here(step, busy=False))

    def next_extent(self, step: int) -> ObservationExtent:
        """How much the observation that is made now covers; counts it.

        Args:
            step: number of updates.
        """
        number, whole = self.count, self.count == 0 or step == self.settings.total_steps
        self.count += 1
        turns = number // self.settings.parts
        full = whole or turns % self.settings.full_every == 0
        return ObservationExtent(None if whole else number, full)

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Adds the time that the block takes, as that of a new observation."""
        start = time.perf_counter()
        yield
        self._last = time.perf_counter()
        self._behind_observation = True
        self._to_pass = 0
        seconds = self._last - start
        self.spent += seconds
        self._recent = [*self._recent[-2:], seconds]
        self._earliest = 0.0

    def charge(self, seconds: float) -> None:
        """Adds time to the cost of the last observation, spent on it elsewhere."""
        self.spent += seconds
        if self._recent:
            self._recent[-1] += seconds

    @property
    def overhead(self) -> float:
        """Seconds that went into observing and asking over those since the first question."""
        if self._start is None:
            return 0.0
        elapsed = time.perf_counter() - self._start
        return self.spent / elapsed if elapsed > 0 else 0.0

    def _hear(self, since: float) -> None:
        """Learns from the time of a question how long steps take, and what was not seen so far."""
        seconds, steps = since - self._last, self._passed + 1
        self.spent += self._passed * self._pass_seconds
        self._passed = 0
        if self._behind_observation:
            self._behind_observation = False
            slower = seconds - self._step_seconds
            if slower > 0:
                self.charge(slower)
        elif seconds > 0:
            self._step_seconds = seconds / steps

    def _seconds_to_pass(self) -> float:
        """What passing over a step costs, and as much again for the call around it."""
        if not self._auto:
            return 0.0
        count = 256
        self._to_pass = count
        start = time.perf_counter()
        for _ in range(count):
            self.passes(-1)
        seconds = time.perf_counter() - start
        self._passed = 0
        return 2 * seconds / count

    def _due_here(self, step: int, *, busy: bool) -> bool:
        """What this process thinks."""
        now = time.perf_counter()
        if self._start is None:
            self._start = now
        if self._periods is not None:
            return self._periods.begins(step)
        if step == self.settings.total_steps:
            return True
        if busy:
            return False
        if not self._recent:
            return True
        # Twice, since on a machine with other work an observation can take longer than ever before;
        # that of the last step takes all parts.
        reserved = 2 if self.settings.total_steps is None else 2 + 2 * self.settings.parts
        cost = self.spent + reserved * max(self._recent)
        self._earliest = self._start + cost / self.settings.budget
        return now >= self._earliest
