"""What a run of structured sparsification is set by, in groups of what belongs together."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from latewood.errors import invalid, require_count
from latewood.sparsity.structured.gates import Estimator
from latewood.sparsity.structured.new_weight_init import NewWeightScale

__all__ = [
    "FreezeSettings",
    "GateSettings",
    "GrowthSettings",
    "LogitSettings",
    "PenaltySettings",
    "Ranking",
    "StructuredSettings",
]

Ranking = Literal["norms", "logits"]

# A field without a default is left to the presets.


@dataclass(frozen=True, kw_only=True)
class GateSettings:
    """What scales a structure while it is there.

    Args:
        estimator: "soft" scales what is present by sigmoid(beta s); "ste" does not, and passes the
            gradient on.
        temperature: "per_structure", or "global": beta = gamma ** epoch for all.
        final_temperature: beta of a structure that is there in all epochs.

    Raises:
        RequestError: a value out of range.
    """

    estimator: Estimator = "soft"
    temperature: Literal["per_structure", "global"] = "per_structure"
    final_temperature: float = 100.0

    def __post_init__(self) -> None:
        if self.estimator not in ("soft", "ste"):
            raise invalid("estimator", self.estimator, "'soft' or 'ste'")
        if self.temperature not in ("per_structure", "global"):
            raise invalid("temperature", self.temperature, "'per_structure' or 'global'")
        if not 1.0 <= self.final_temperature < math.inf:
            raise invalid("final_temperature", self.final_temperature, "a finite number from 1 on")


@dataclass(frozen=True, kw_only=True)
class PenaltySettings:
    """How strongly the logits are driven towards the budget.

    Args:
        penalty: (lambda_base) of channels.
        layer_penalty: (lambda_base) of blocks; None takes ``penalty``.
        normalised: divide lambda by 1 - u, the budget's share of the full model.

    Raises:
        RequestError: a value out of range.
    """

    penalty: float = 0.5
    layer_penalty: float | None = None
    normalised: bool

    def __post_init__(self) -> None:
        for name, value in (("penalty", self.penalty), ("layer_penalty", self.block_penalty)):
            if not 0.0 <= value < math.inf:
                raise invalid(name, value, "a finite number, 0 or more")

    @property
    def block_penalty(self) -> float:
        """(lambda_base) of blocks."""
        return self.penalty if self.layer_penalty is None else self.layer_penalty


@dataclass(frozen=True, kw_only=True)
class LogitSettings:
    """How the optimizer moves the logits.

    Args:
        logit_lr: learning rate; None is 0.1 for optimizers with momentum alone, and 0.01 for those
            like Adam, whose steps are of the size of the learning rate.
        logit_decay: weight decay, which drags them towards 0, undecided.

    Raises:
        RequestError: a value out of range.
    """

    logit_lr: float | None = None
    logit_decay: float

    def __post_init__(self) -> None:
        if self.logit_lr is not None and not 0.0 < self.logit_lr < math.inf:
            raise invalid("logit_lr", self.logit_lr, "a positive finite number, or None")
        if not 0.0 <= self.logit_decay < math.inf:
            raise invalid("logit_decay", self.logit_decay, "a finite number, 0 or more")


@dataclass(frozen=True, kw_only=True)
class GrowthSettings:
    """What a run begins with, and how it grows before the structures are fixed.

    Args:
        seed_width: channels of each group that are there at the start.
        seed_logit: of those.
        growth_logit: of all others; None is the logit from which the penalty alone reaches 0 within
            ``growth_time`` (``logit_dynamics.growth_logit``).
        growth_time: as a share of the run.
        overshoot: how many times the budget the network grows to, up to the full one; 1 grows to
            the budget, so that the freeze has little to choose from, and is the default where
            ``freeze`` is 1.
        capped: keep also the samples before the freeze within the budget times ``overshoot``.
        birth: scale of new weights: "initial" is the deviation of the full model's initial values,
            "kaiming" that of Kaiming's initialisation with the full layer's fan-in.

    Raises:
        RequestError: a value out of range.
    """

    seed_width: int = 1
    seed_logit: float = 3.0
    growth_logit: float | None
    growth_time: float
    overshoot: float
    capped: bool
    birth: NewWeightScale

    def __post_init__(self) -> None:
        require_count("seed_width", self.seed_width)
        if not isinstance(self.seed_logit, int | float) or not math.isfinite(self.seed_logit):
            raise invalid("seed_logit", self.seed_logit, "a finite number")
        if self.growth_logit is not None and not -16.0 <= self.growth_logit < math.inf:
            raise invalid("growth_logit", self.growth_logit, "a number from -16 on, or None")
        if not 0.0 < self.growth_time <= 1.0:
            raise invalid("growth_time", self.growth_time, "a share of the run, above 0 to 1")
        if not 1.0 <= self.overshoot < math.inf:
            raise invalid("overshoot", self.overshoot, "a finite number of budgets, 1 or more")
        if self.birth not in ("initial", "kaiming"):
            raise invalid("birth", self.birth, "'initial' or 'kaiming'")


@dataclass(frozen=True, kw_only=True)
class FreezeSettings:
    """When the structures are fixed, and which stay.

    Args:
        freeze: share of the run after which they are; 1 leaves it to ``finalize``.
        ranking: what channels are chosen by: "norms" of all weights that make and read them
            (``saliency.saliencies``), or "logits".
        floor: least width of a group, as a share of its width in a network of the budget whose
            groups are all narrowed alike; the rest goes by the ranking.

    Raises:
        RequestError: a value out of range.
    """

    freeze: float
    ranking: Ranking
    floor: float

    def __post_init__(self) -> None:
        if not 0.0 < self.freeze <= 1.0:
            raise invalid("freeze", self.freeze, "a share of the run, above 0 to 1")
        if self.ranking not in ("norms", "logits"):
            raise invalid("ranking", self.ranking, "'norms' or 'logits'")
        if not 0.0 <= self.floor <= 1.0:
            raise invalid("floor", self.floor, "a share of a width, from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class StructuredSettings:
    """All settings of a run, by group.

    Args:
        gates: what scales a structure while it is there.
        penalty: how strongly the logits are driven towards the budget.
        logits: how the optimizer moves them.
        growth: what a run begins with, and how it grows.
        freeze: when the structures are fixed, and which stay.
    """

    gates: GateSettings
    penalty: PenaltySettings
    logits: LogitSettings
    growth: GrowthSettings
    freeze: FreezeSettings

    def having(self, **values: Any) -> StructuredSettings:
        """The same with some values replaced, each named as in its group.

        Raises:
            RequestError: a value out of range.
        """
        groups = {}
        for group in fields(self):
            settings = getattr(self, group.name)
            names = {field.name for field in fields(settings)} & values.keys()
            groups[group.name] = replace(settings, **{name: values[name] for name in names})
        return StructuredSettings(**groups)
