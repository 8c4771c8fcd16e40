"""Networks on RRAM crossbars with stuck cells: simulated, evaluated and hardened."""

from __future__ import annotations

from latewood.faults.crossbar import Crossbar
from latewood.faults.encoding import Encoded, digits, encode
from latewood.faults.injection import injected
from latewood.faults.moments import Moments, cell_change, moments
from latewood.faults.simulation import read_back
from latewood.faults.stuck_at import ArrayBeta, Gaussian, LineFaults, StuckAt

__all__ = [
    "ArrayBeta",
    "Crossbar",
    "Encoded",
    "Gaussian",
    "LineFaults",
    "Moments",
    "StuckAt",
    "cell_change",
    "digits",
    "encode",
    "injected",
    "moments",
    "read_back",
]
