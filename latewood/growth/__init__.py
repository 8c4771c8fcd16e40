"""Networks that start narrow and widen while they train, with what the optimizer knows of them."""

from __future__ import annotations

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
from latewood.growth.learning_rates import StageRates, norm_ratios
from latewood.growth.planner import Plan, ScheduleChoice, plan_schedule
from latewood.growth.schedules import batch_schedule, epoch_schedule, width_schedule
from latewood.growth.stages import Stages

__all__ = [
    "GROWTH_SCHEDULES",
    "Growth",
    "GrowthEvent",
    "GrowthSchedule",
    "Plan",
    "ScheduleChoice",
    "StageRates",
    "Stages",
    "batch_schedule",
    "epoch_schedule",
    "explicit",
    "growth_schedule",
    "late",
    "norm_ratios",
    "phased",
    "plan_schedule",
    "plateau",
    "width_schedule",
]
