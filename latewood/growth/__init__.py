"""Networks that start narrow and widen while they train, with what the optimizer knows of them."""

from __future__ import annotations

from latewood.growth.learning_rates import StageRates, norm_ratios
from latewood.growth.schedules import batch_schedule, epoch_schedule, width_schedule
from latewood.growth.stages import Stages

__all__ = [
    "Stages",
    "StageRates",
    "batch_schedule",
    "epoch_schedule",
    "norm_ratios",
    "width_schedule",
]
