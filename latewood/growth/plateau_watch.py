"""Whether a loss has stopped falling."""

from __future__ import annotations

import math
from typing import Any

from latewood.growth.growth_schedule import Plateau

__all__ = ["PlateauWatch"]


class PlateauWatch:
    """Counts the epochs in which a loss did not improve.

    Args:
        settings: what counts as an improvement, and how long to wait for one.
    """

    def __init__(self, settings: Plateau) -> None:
        self._settings = settings
        self.best = math.inf
        """The least loss since the last widening."""
        self.waited = 0
        """Epochs since it."""

    def stalled(self, loss: float) -> bool:
        """Takes in the loss of an epoch; whether the patience is at its end."""
        if loss < self.best - self._settings.threshold * abs(self.best) or math.isinf(self.best):
            self.best, self.waited = loss, 0
        else:
            self.waited += 1
        return self.waited >= self._settings.patience

    def restart(self) -> None:
        """Begins anew, as a wider network can go lower."""
        self.best, self.waited = math.inf, 0

    def state_dict(self) -> dict[str, Any]:
        """The best loss and how long ago it was."""
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` returned."""
        self.best, self.waited = float(state["best"]), int(state["waited"])
