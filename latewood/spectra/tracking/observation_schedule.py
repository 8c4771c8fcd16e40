"""When a probe looks: every so many steps, at the ends of epochs, or within a share of the time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from latewood.errors import RequestError, invalid

__all__ = ["Cadence", "Every"]

Every = int | Literal["epoch", "auto"]


class Cadence:
    """Decides at which steps a probe looks, and measures what looking costs.

    With "auto" a look is due when all that was spent so far and this look, if it cost twice as much
    as the dearest of the last three, fit into ``budget`` of the wall-clock time since the first
    question.
    The first question and the last step of the training are always answered; room for the last is
    kept.

    Args:
        every: number of steps, "epoch", or "auto".
        steps_per_epoch: needed for "epoch".
        total_steps: last step of the training, for "auto"; None if nobody knows.
        budget: share of the time, in (0, 1), for "auto".
        last: how many usual looks that of the last step costs.

    Raises:
        RequestError: a value that is not allowed, or "epoch" without its length.
    """

    def __init__(
        self,
        every: Every,
        *,
        steps_per_epoch: int | None = None,
        total_steps: int | None = None,
        budget: float = 0.03,
        last: int = 1,
    ) -> None:
        if every not in ("epoch", "auto") and (not isinstance(every, int) or every < 1):
            raise invalid("every", every, 'an integer of at least 1, "epoch" or "auto"')
        if every == "epoch" and steps_per_epoch is None:
            raise RequestError(
                'steps_per_epoch: got None with every="epoch"; expected the number of steps'
            )
        if steps_per_epoch is not None and steps_per_epoch < 1:
            raise invalid("steps_per_epoch", steps_per_epoch, "an integer of at least 1")
        if not 0 < budget < 1:
            raise invalid("budget", budget, "a number between 0 and 1")
        self.period = steps_per_epoch if every == "epoch" else every
        self.total_steps = total_steps
        self.budget = budget
        self.last = last
        self.spent = 0.0
        self._start: float | None = None
        self._recent: list[float] = []
        self._earliest = 0.0

    def quiet(self, step: int, since: float) -> bool:
        """Whether "auto" knows, without a closer look, that ``step`` is not due.

        Of a short training step even the question takes a share, so it is short and counts.

        Args:
            step: number of updates.
            since: when the question began, by ``time.perf_counter``.
        """
        if since >= self._earliest or step == self.total_steps:
            return False
        # As much again for the call itself, which no clock inside it sees.
        self.spent += 2 * (time.perf_counter() - since)
        return True

    def due(self, step: int, *, busy: bool = False) -> bool:
        """Whether to look after ``step`` updates.

        Args:
            step: number of updates.
            busy: whether a look is still under way, whose cost nobody knows yet; "auto" waits.
        """
        now = time.perf_counter()
        if self._start is None:
            self._start = now
        if isinstance(self.period, int):
            return step % self.period == 0
        if step == self.total_steps:
            return True
        if busy:
            return False
        if not self._recent:
            return True
        # Twice, since on a machine with other work a look can take longer than ever before.
        reserved = 2 if self.total_steps is None else 2 + 2 * self.last
        cost = self.spent + reserved * max(self._recent)
        self._earliest = self._start + cost / self.budget
        return now >= self._earliest

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Adds the time that the block takes, as that of a new look."""
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        self.spent += seconds
        self._recent = [*self._recent[-2:], seconds]
        self._earliest = 0.0

    def charge(self, seconds: float) -> None:
        """Adds time to the cost of the last look, spent on it elsewhere."""
        self.spent += seconds
        if self._recent:
            self._recent[-1] += seconds

    @property
    def overhead(self) -> float:
        """Seconds that went into looking and asking over those since the first question."""
        if self._start is None:
            return 0.0
        elapsed = time.perf_counter() - self._start
        return self.spent / elapsed if elapsed > 0 else 0.0
