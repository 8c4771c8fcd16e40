"""Networks on RRAM crossbars with stuck cells: simulated, evaluated and hardened."""

from __future__ import annotations

from latewood.faults.crossbar import Crossbar
from latewood.faults.crossbar_cost import CrossbarCost, LayerCost, cost
from latewood.faults.device_constants import ISAAC, DeviceConstants
from latewood.faults.drop_connect import DropConnect
from latewood.faults.drop_rates import RateRamp
from latewood.faults.encoding import Encoded, digits, encode
from latewood.faults.injection import injected
from latewood.faults.map_statistics import MonteCarlo
from latewood.faults.moments import Moments, cell_change, moments
from latewood.faults.monte_carlo import monte_carlo
from latewood.faults.simulation import read_back
from latewood.faults.stuck_at import ArrayBeta, Gaussian, LineFaults, StuckAt

__all__ = [
    "ArrayBeta",
    "Crossbar",
    "CrossbarCost",
    "DeviceConstants",
    "DropConnect",
    "Encoded",
    "Gaussian",
    "ISAAC",
    "LayerCost",
    "LineFaults",
    "Moments",
    "MonteCarlo",
    "RateRamp",
    "StuckAt",
    "cell_change",
    "cost",
    "digits",
    "encode",
    "injected",
    "moments",
    "monte_carlo",
    "read_back",
]
