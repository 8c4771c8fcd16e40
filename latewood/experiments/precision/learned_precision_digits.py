"""Learned bits against full precision, against uniform bits and against two relatives, on digits.

A narrow perceptron, since a wide one has every accuracy at every precision there. Quick and cpu
scale are the same trainings, shorter and of fewer seeds at quick.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from latewood.core.threads import threads
from latewood.experiments.papers import LEARNED_PRECISION
from latewood.experiments.precision.compared_trainings import (
    ComparedTrainings,
    above,
    averages_met,
    comparisons,
)
from latewood.experiments.registry import Experiment, Results, Scale, Workspace, register, replicate
from latewood.models import mlp
from latewood.precision import NoiseSettings
from latewood.tasks.digits import digits

__all__ = ["LEARNED_PRECISION_DIGITS"]

EPOCHS: Mapping[str, int] = {"quick": 3, "cpu": 30}
SEEDS: Mapping[str, int] = {"quick": 1, "cpu": 4}
HIDDEN = (16, 16)
BATCH, RATE = 64, 5e-3
SNAP_AT = 0.4
NOISE = NoiseSettings(scale="fan_in", initial_bits=5.0)
"""Chosen on seeds 100 and 101, for trainings as short as these."""
LEARNED: Mapping[str, Mapping[str, Any]] = {
    "channel 2": {"target_bits": 2.0},
    "channel 1.5": {"target_bits": 1.5},
    "weight 2": {"target_bits": 2.0, "per": "weight"},
    "two levels 2": {"target_bits": 2.0, "palette": "two_levels"},
    "inputs 2": {"target_bits": 2.0, "activations": True},
    "patterns 2": {"target_bits": 2.0, "patterns": 4},
}
ASKED = {
    "channel 2": 2.0,
    "channel 1.5": 1.5,
    "weight 2": 2.0,
    "two levels 2": 2.0,
    "inputs 2": 2.0,
}
"""Averages to be met; what patterns promote comes on top."""


def run(scale: Scale, workspace: Workspace) -> Results:
    """Trains everything from the same weights on the same batches, seed by seed."""
    epochs, task = EPOCHS[scale], digits()

    def measure(seed: int) -> dict[str, float]:
        trainings = ComparedTrainings(
            task=task,
            network=partial(mlp, in_features=64, hidden=HIDDEN, num_classes=10, norm=True),
            optimizer=partial(torch.optim.Adam, lr=RATE),
            steps=epochs * (len(task.train) // BATCH),
            batch_size=BATCH,
            seed=seed,
            noise=NOISE,
            snap_at=SNAP_AT,
        )
        # So small a network waits for a second thread more than it gains by it.
        with threads(1):
            return trainings.measure(LEARNED) | {"uniform 1": trainings.uniform(1)}

    settings = {
        "epochs of each training": epochs,
        "hidden units": str(HIDDEN),
        "noise phase": SNAP_AT,
        "noise": "from 5 bits, scale by fan-in",
        "weights": "of all layers, none at 8 bits",
    }
    return replicate(measure, range(SEEDS[scale]), workspace, settings=settings)


LEARNED_PRECISION_DIGITS = register(
    Experiment(
        name="learned-precision-digits",
        title="Learned bits against full precision, uniform bits and two relatives, on digits",
        paper=LEARNED_PRECISION,
        run=run,
        scales=("quick", "cpu"),
        claims=(
            averages_met(ASKED),
            *comparisons(within=0.01, of_scores=True),
            above(
                "two-levels",
                "Two levels for the network are at most 1 point behind three.",
                "[P] v3 and v4: two levels suffice",
                "two levels 2",
                "channel 2",
                margin=0.01,
            ),
            above(
                "patterns",
                "Channels that fit four register patterns are at most 1 point behind free ones.",
                "[P] v1: four configurable patterns are enough",
                "patterns 2",
                "channel 2",
                margin=0.01,
            ),
        ),
    )
)
