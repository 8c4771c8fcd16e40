"""What a training of precisions warns of before it starts."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Final

from torch import Tensor

from latewood.errors import listed
from latewood.precision.noise_training import TRAVEL, NoiseSettings
from latewood.precision.number_format import MOST_BITS
from latewood.precision.weight_precision import WeightPrecision

__all__ = ["warn_of_traps"]

_MOST_CLIPPED: Final = 0.01


def warn_of_traps(
    left: Mapping[str, str],
    learning: Mapping[str, tuple[WeightPrecision, Tensor]],
    noise: NoiseSettings,
    *,
    lr: float,
    steps: int,
) -> None:
    """Warns of weights left in float, of too slow an s, and of weights that the scale clips.

    Args:
        left: why a matrix stays in float, by its name.
        learning: precision and stored weight by name.
        noise: as asked for.
        lr: learning rate of s.
        steps: of the noise phase.
    """
    if left:
        reasons = listed(f"{name} ({reason})" for name, reason in left.items())
        _warn(f"model: left in float: {reasons}")
    if lr * steps < TRAVEL:
        _warn(
            f"noise.lr: {lr:g} times the {steps} steps of the noise phase is {lr * steps:.3g}, "
            f"below {TRAVEL:g}: no weight gets from {MOST_BITS} bits to 1; expected a larger rate "
            "or more steps"
        )
    if noise.scale == "fan_in":
        parts = {
            name: float((stored.detach().abs() > 2 * precision.scale).float().mean())
            for name, (precision, stored) in learning.items()
        }
        clipped = [f"{name} ({part:.0%})" for name, part in parts.items() if part > _MOST_CLIPPED]
        if clipped:
            _warn(
                f"noise.scale: 'fan_in' clips many weights of {listed(clipped)}; 'max' suits "
                "weights that are trained already"
            )


def _warn(message: str) -> None:
    # The caller of the method that calls warn_of_traps.
    warnings.warn(message, UserWarning, stacklevel=4)
