"""The two sets of defaults: the plain algorithm, and what we found it to need."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from latewood.errors import invalid
from latewood.sparsity.structured.new_weight_init import Birth
from latewood.sparsity.temperature_schedule import require_count

__all__ = ["PRESETS", "Preset", "Ranking", "checked", "preset_having"]

Ranking = Literal["norms", "logits"]


@dataclass(frozen=True)
class Preset:
    """What a run grows and freezes by.

    Args:
        normalised: divide the penalty's weight by the budget's share.
        growth_logit: where absent structures start; None follows ``growth_time``.
        growth_time: share of the run in which the penalty alone carries them to 0.
        freeze: share of the run after which the structures are fixed.
        ranking: what channels are chosen by then: their weights' norms, or their logits.
        floor: least width of a group then, over that of a network of the budget whose groups are
            all narrowed alike.
        overshoot: how many budgets the network may cost before.
        capped: keep every sample within the budget.
        logit_decay: weight decay of the logits.
        birth: scale of newly born weights.

    Raises:
        RequestError: a value out of range.
    """

    normalised: bool
    growth_logit: float | None
    growth_time: float
    freeze: float
    ranking: Ranking
    floor: float
    overshoot: float
    capped: bool
    logit_decay: float
    birth: Birth

    def __post_init__(self) -> None:
        if self.growth_logit is not None and not -16.0 <= self.growth_logit < math.inf:
            raise invalid("growth_logit", self.growth_logit, "a number from -16 on, or None")
        if not 0.0 < self.growth_time <= 1.0:
            raise invalid("growth_time", self.growth_time, "a share of the run, above 0 to 1")
        if not 0.0 < self.freeze <= 1.0:
            raise invalid("freeze", self.freeze, "a share of the run, above 0 to 1")
        if not 0.0 <= self.floor <= 1.0:
            raise invalid("floor", self.floor, "a share of a width, from 0 to 1")
        if self.ranking not in ("norms", "logits"):
            raise invalid("ranking", self.ranking, "'norms' or 'logits'")
        if not 1.0 <= self.overshoot < math.inf:
            raise invalid("overshoot", self.overshoot, "a finite number of budgets, 1 or more")
        if not 0.0 <= self.logit_decay < math.inf:
            raise invalid("logit_decay", self.logit_decay, "a finite number, 0 or more")
        if self.birth not in ("initial", "kaiming"):
            raise invalid("birth", self.birth, "'initial' or 'kaiming'")

    def having(self, **given: Any) -> Preset:
        """The same with some values replaced; None keeps the preset's."""
        return replace(self, **{name: value for name, value in given.items() if value is not None})


PRESETS: Final[Mapping[str, Preset]] = {
    "recommended": Preset(
        normalised=True,
        growth_logit=None,
        # An early freeze leaves the weights most of the schedule at their final widths.
        growth_time=0.05,
        freeze=0.15,
        # Chosen on digits with seeds and splits that no published figure uses (docs/structured.md):
        # so early the weights tell more than the logits, if there is something to choose from.
        ranking="norms",
        overshoot=4.0,
        # Against the rare run that leaves a layer too narrow.
        floor=0.5,
        capped=True,
        logit_decay=0.0,
        # Learning rates are tuned to the scale of a model's own initial values; torch's are smaller
        # than Kaiming's by the square root of six, and digits are learned worse from the larger.
        birth="initial",
    ),
    "paper": Preset(
        normalised=False,
        growth_logit=-3.0,
        growth_time=0.1,
        freeze=1.0,
        ranking="logits",
        floor=0.0,
        overshoot=1.0,
        capped=False,
        logit_decay=1e-6,
        birth="kaiming",
    ),
}
"""By name. "paper" is recalled, not checked against its text; the growth logit and the fan-in of
newborn filters are ours."""


def preset_having(name: str, **given: Any) -> Preset:
    """A preset with some values replaced; None keeps the preset's.

    Without a freeze there is no overshoot, unless it is given: nothing would train what is left.

    Raises:
        RequestError: an unknown name or a value out of range.
    """
    if name not in PRESETS:
        raise invalid("preset", name, f"one of {', '.join(PRESETS)}")
    chosen = PRESETS[name].having(**given)
    if chosen.freeze == 1.0 and given.get("overshoot") is None:
        return chosen.having(overshoot=1.0)
    return chosen


def checked(**given: Any) -> None:
    """Refuses arguments of the method that are out of range.

    Raises:
        RequestError: one is.
    """
    for name in ("total_steps", "steps_per_epoch", "seed_width"):
        require_count(name, given[name])
    if given["estimator"] not in ("soft", "ste"):
        raise invalid("estimator", given["estimator"], "'soft' or 'ste'")
    if given["temperature"] not in ("per_structure", "global"):
        raise invalid("temperature", given["temperature"], "'per_structure' or 'global'")
    if not 1.0 <= given["final_temperature"] < math.inf:
        raise invalid("final_temperature", given["final_temperature"], "a finite number from 1 on")
    for name in ("penalty", "layer_penalty"):
        if given[name] is not None and not 0.0 <= given[name] < math.inf:
            raise invalid(name, given[name], "a finite number, 0 or more")
    logit = given["seed_logit"]
    if not isinstance(logit, int | float) or not math.isfinite(logit):
        raise invalid("seed_logit", logit, "a finite number")
    if given["logit_lr"] is not None and not 0.0 < given["logit_lr"] < math.inf:
        raise invalid("logit_lr", given["logit_lr"], "a positive finite number, or None")
