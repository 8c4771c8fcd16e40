"""The temperature of continuous sparsification over a run, in rounds, and when masks are fixed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from latewood.core import Epochs, StepsPerEpoch, exponential, progress
from latewood.errors import invalid, require_count

__all__ = ["TemperatureSchedule"]


@dataclass(frozen=True, kw_only=True)
class TemperatureSchedule:
    """When what happens, as functions of the number of steps done.

    The temperature of a round rises from 1 to ``final_temperature`` at a constant factor; in the
    last round it is there, and the masks are fixed, after the fraction ``harden_at`` of the round.

    Args:
        total_steps: optimizer steps of the run.
        rounds: (R) equal parts of it.
        steps_per_epoch: None raises the temperature every step, the length of all epochs or of each
            at every epoch's start; the masks are then fixed at an epoch's start too.
        final_temperature: (beta_T), 1 or more.
        harden_at: in (0, 1]; 1 leaves the masks soft to the end.

    Raises:
        RequestError: an argument out of range, or rounds that are not equal.
    """

    total_steps: int
    rounds: int = 1
    steps_per_epoch: StepsPerEpoch | None = None
    final_temperature: float = 200.0
    harden_at: float = 1.0

    def __post_init__(self) -> None:
        require_count("rounds", self.rounds)
        epochs = self._epochs
        whole = epochs.start(epochs.count) == self.total_steps
        if self.rounds > 1 and (epochs.count % self.rounds or not whole):
            words = "steps"
            if self.steps_per_epoch is not None:
                words = (
                    f"epochs of {epochs.length(0)} steps" if epochs.equal else "numbers of epochs"
                )
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
        last_round = (self.rounds - 1) * self._epochs_of_a_round
        soft = self._epochs.start(last_round + self._soft_epochs(self.rounds))
        return min(self.total_steps, soft)

    def round(self, step: int) -> int:
        """The round of the step to come, from 1 to ``rounds``."""
        return min(self._epochs.of(step) // self._epochs_of_a_round + 1, self.rounds)

    def temperature(self, step: int) -> float:
        """The temperature (beta) of the step to come."""
        number = self.round(step)
        within = self._epochs.of(step) - (number - 1) * self._epochs_of_a_round
        at = progress(within, self._soft_epochs(number))
        return exponential(1.0, self.final_temperature)(at)

    @cached_property
    def _epochs(self) -> Epochs:
        """Where the temperature rises: at every step, unless epochs are known."""
        return Epochs(1 if self.steps_per_epoch is None else self.steps_per_epoch, self.total_steps)

    @cached_property
    def _epochs_of_a_round(self) -> int:
        return self._epochs.count // self.rounds

    def _soft_epochs(self, number: int) -> int:
        """Epochs of a round with soft masks: at least one."""
        whole = self._epochs_of_a_round
        if number < self.rounds or self.harden_at == 1.0:
            return whole
        passes = float(self._epochs.passes(self.total_steps)) / self.rounds
        # The tolerance keeps 0.07 * 100 from becoming 8.
        return min(whole, max(1, math.ceil(self.harden_at * passes - 1e-9)))
