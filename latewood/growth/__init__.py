"""Networks that start narrow and widen while they train, with what the optimizer knows of them."""

from __future__ import annotations

from latewood.growth.deepen import deepen
from latewood.growth.growth import Growth
from latewood.growth.growth_event import GrowthEvent
from latewood.growth.growth_schedule import (
    GROWTH_SCHEDULES,
    GrowthSchedule,
    explicit,
    growth_schedule,
    late,
    phased,
    plateau,
)
from latewood.growth.initialisations import gradmax_directions
from latewood.growth.learning_rates import StageRates, norm_ratios
from latewood.growth.newborn_probe import NewbornProbe
from latewood.growth.planner import Plan, ScheduleChoice, plan_schedule
from latewood.growth.requested_widths import widened_groups
from latewood.growth.schedules import batch_schedule, epoch_schedule, width_schedule
from latewood.growth.stages import Stages
from latewood.growth.variance_transfer import Rescaling, output_learning_rates
from latewood.growth.weight_scale import WeightScale, bake_scales
from latewood.growth.widen import Widened, WideningSettings, widen

__all__ = [
    "GROWTH_SCHEDULES",
    "Growth",
    "GrowthEvent",
    "GrowthSchedule",
    "NewbornProbe",
    "Plan",
    "Rescaling",
    "ScheduleChoice",
    "StageRates",
    "Stages",
    "WeightScale",
    "Widened",
    "WideningSettings",
    "bake_scales",
    "batch_schedule",
    "deepen",
    "epoch_schedule",
    "explicit",
    "gradmax_directions",
    "growth_schedule",
    "late",
    "norm_ratios",
    "output_learning_rates",
    "phased",
    "plan_schedule",
    "plateau",
    "widen",
    "widened_groups",
    "width_schedule",
]
