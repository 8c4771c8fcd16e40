"""Optimizers that keep learning rate and adaptability apart: AvaGrad and its neighbours."""

from latewood.optim.adabound import AdaBound, AMSBound
from latewood.optim.avagrad import AvaGrad, AvaGradW
from latewood.optim.bounds import (
    Bounds,
    CorrectedBounds,
    HyperbolicBounds,
    SwitchedBounds,
    regret_bound,
    regret_constant,
    regret_difference,
)
from latewood.optim.creation import create_optimizer
from latewood.optim.csgd import CSGD
from latewood.optim.delayed_adam import DelayedAdam
from latewood.optim.study import RateStudy, best_rates, coupling_slope, rate_study, spread

__all__ = [
    "CSGD",
    "AMSBound",
    "AdaBound",
    "AvaGrad",
    "AvaGradW",
    "Bounds",
    "CorrectedBounds",
    "DelayedAdam",
    "HyperbolicBounds",
    "RateStudy",
    "SwitchedBounds",
    "best_rates",
    "coupling_slope",
    "create_optimizer",
    "rate_study",
    "regret_bound",
    "regret_constant",
    "regret_difference",
    "spread",
]
