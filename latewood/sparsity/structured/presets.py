"""The two sets of defaults: the plain algorithm, and what we found it to need."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from latewood.errors import invalid

__all__ = ["PRESETS", "Preset"]


@dataclass(frozen=True)
class Preset:
    """What a run grows and freezes by.

    Args:
        normalised: divide the penalty's weight by the budget's share.
        growth_logit: where absent structures start; None follows ``growth_time``.
        growth_time: share of the run in which the penalty alone carries them to 0.
        freeze: share of the run after which the structures are fixed.
        capped: keep every sample within the budget.
        logit_decay: weight decay of the logits.

    Raises:
        RequestError: a value out of range.
    """

    normalised: bool
    growth_logit: float | None
    growth_time: float
    freeze: float
    capped: bool
    logit_decay: float

    def __post_init__(self) -> None:
        if self.growth_logit is not None and not -16.0 <= self.growth_logit < math.inf:
            raise invalid("growth_logit", self.growth_logit, "a number from -16 on, or None")
        if not 0.0 < self.growth_time <= 1.0:
            raise invalid("growth_time", self.growth_time, "a share of the run, above 0 to 1")
        if not 0.0 < self.freeze <= 1.0:
            raise invalid("freeze", self.freeze, "a share of the run, above 0 to 1")
        if not 0.0 <= self.logit_decay < math.inf:
            raise invalid("logit_decay", self.logit_decay, "a finite number, 0 or more")

    def having(self, **given: Any) -> Preset:
        """The same with some values replaced; None keeps the preset's."""
        return replace(self, **{name: value for name, value in given.items() if value is not None})


PRESETS: Final[Mapping[str, Preset]] = {
    "recommended": Preset(
        normalised=True,
        growth_logit=None,
        growth_time=0.1,
        freeze=0.4,
        capped=True,
        logit_decay=0.0,
    ),
    "paper": Preset(
        normalised=False,
        growth_logit=-3.0,
        growth_time=0.1,
        freeze=1.0,
        capped=False,
        logit_decay=1e-6,
    ),
}
"""By name. Of "paper" the growth logit is ours: the paper's was not found."""
