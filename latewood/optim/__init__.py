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
from latewood.optim.csgd import CSGD
from latewood.optim.delayed_adam import DelayedAdam

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
    "SwitchedBounds",
    "regret_bound",
    "regret_constant",
    "regret_difference",
]
