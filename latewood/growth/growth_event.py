"""The journal of a growing run: one entry for every widening, from which it can be done again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from latewood.errors import invalid

__all__ = ["GrowthEvent", "event_seed"]


@dataclass(frozen=True, kw_only=True)
class GrowthEvent:
    """One widening.

    Args:
        step: optimizer steps done before it.
        phase: that it begins, from 1.
        widths: the new widths by group.
        seed: of its random numbers.
        loss_before: measured just before it; None if nobody measures.
        loss_after: measured just after it.
    """

    step: int
    phase: int
    widths: Mapping[str, int]
    seed: int
    loss_before: float | None = None
    loss_after: float | None = None

    def packed(self) -> dict[str, Any]:
        """The event as a checkpoint holds it."""
        return asdict(self) | {"widths": dict(self.widths)}

    @classmethod
    def unpacked(cls, stored: Any) -> GrowthEvent:
        """The event that ``packed`` made this of.

        Raises:
            RequestError: it is none.
        """
        try:
            return cls(**stored)
        except TypeError as error:
            raise invalid("state", stored, "an event as Growth.state_dict holds it") from error


def event_seed(seed: int, number: int) -> int:
    """The seed of an event's random numbers: unrelated to those of other events and seeds.

    Args:
        seed: of the run.
        number: of the event, from 1.
    """
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0] >> 1)
