"""The temperature of continuous sparsification over a run, in rounds, and when masks are fixed."""

from __future__ import annotations

import math
from dataclasses import dataclass

from latewood.core import exponential, progress
from latewood.errors import invalid

__all__ = ["TemperatureSchedule", "require_count"]


@dataclass(frozen=True, kw_only=True)
class TemperatureSchedule:
    """When what happens, as functions of the number of steps done.

    The temperature of a round rises from 1 to ``final_temperature`` at a constant factor; in the
    last round it is there, and the masks are fixed, after the fraction ``harden_at`` of the round.

    Args:
        total_steps: optimizer steps of the run.
        rounds: (R) equal parts of it.
        steps_per_epoch: None raises the temperature every step, a number at each epoch's start;
            the masks are then fixed at an epoch's start too.
        final_temperature: (beta_T), 1 or more.
        harden_at: in (0, 1]; 1 leaves the masks soft to the end.

    Raises:
        RequestError: an argument out of range, or rounds that are not equal.
    """

    total_steps: int
    rounds: int = 1
    steps_per_epoch: int | None = None
    final_temperature: float = 200.0
    harden_at: float = 1.0

    def __post_init__(self) -> None:
        require_count("total_steps", self.total_steps)
        if self.steps_per_epoch is not None:
            require_count("steps_per_epoch", self.steps_per_epoch)
        require_count("rounds", self.rounds)
        unit = self.steps_per_epoch or 1
        if self.rounds > 1 and self.total_steps % (self.rounds * unit):
            words = "steps" if self.steps_per_epoch is None else f"epochs of {unit} steps"
            raise invalid(
                "rounds",
                self.rounds,
                f"a number that cuts {self.total_steps} steps into whole equal {words}",
            )
        if not 1.0 <= self.final_temperature < math.inf:
            raise invalid("final_temperature", self.final_temperature, "a finite number, 1 or more")
        if not 0.0 < self.harden_at <= 1.0:
            raise invalid("harden_at", self.harden_at, "a number in (0, 1]")

    @property
    def harden_step(self) -> int | None:
        """The number of steps done when the masks are fixed; None for never before the end."""
        if self.harden_at == 1.0:
            return None
        return self.total_steps - self._steps + self._soft_steps(self.rounds)

    def round(self, step: int) -> int:
        """The round of the step to come, from 1 to ``rounds``."""
        return min(step * self.rounds // self.total_steps + 1, self.rounds)

    def temperature(self, step: int) -> float:
        """The temperature (beta) of the step to come."""
        number = self.round(step)
        within, steps = step - (number - 1) * self._steps, self._soft_steps(number)
        if self.steps_per_epoch is not None:
            within, steps = within // self.steps_per_epoch, math.ceil(steps / self.steps_per_epoch)
        return exponential(1.0, self.final_temperature)(progress(within, steps))

    @property
    def _steps(self) -> int:
        return self.total_steps // self.rounds

    def _soft_steps(self, number: int) -> int:
        """Steps of a round with soft masks: at least one, whole epochs where these are known."""
        if number < self.rounds or self.harden_at == 1.0:
            return self._steps
        unit = self.steps_per_epoch or 1
        # The tolerance keeps 0.07 * 100 from becoming 8.
        return min(self._steps, unit * math.ceil(self.harden_at * self._steps / unit - 1e-9))


def require_count(name: str, value: int) -> None:
    """Refuses what is no whole number of 1 or more.

    Raises:
        RequestError: it is not.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise invalid(name, value, "a whole number, 1 or more")
