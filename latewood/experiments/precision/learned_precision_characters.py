"""Learned bits against full precision, uniform bits and two relatives: a Transformer of characters.

Two blocks of 64 units on a text by Shakespeare, a short training. The embedding and the head stay
in float.
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
    averages_met,
    comparisons,
)
from latewood.experiments.registry import Experiment, Results, Scale, Workspace, register, replicate
from latewood.models import transformer
from latewood.precision import NoiseSettings
from latewood.tasks import Task
from latewood.tasks.shakespeare import shakespeare

__all__ = ["LEARNED_PRECISION_CHARACTERS"]

CONTEXT, WIDTH, BLOCKS, HEADS = 32, 64, 2, 4
STEPS, BATCH, SEEDS = 400, 16, 4
RATE = 5e-3
SNAP_AT = 0.5
NOISE = NoiseSettings(scale="max", initial_bits=8.0)
"""Chosen on seed 100, of two scales."""
LAYERS = ("blocks.*",)
LEARNED: Mapping[str, Mapping[str, Any]] = {
    "channel 2": {"target_bits": 2.0},
    "weight 2": {"target_bits": 2.0, "per": "weight"},
    "inputs 2": {"target_bits": 2.0, "activations": True},
}


def run(scale: Scale, workspace: Workspace) -> Results:
    """Trains everything from the same weights on the same batches, seed by seed."""
    task = shakespeare(context=CONTEXT)

    def measure(seed: int) -> dict[str, float]:
        return compared(task, seed).measure(LEARNED)

    settings = {
        "network": f"Transformer, {BLOCKS} blocks of {WIDTH} units, {HEADS} heads",
        "characters of a sequence": CONTEXT,
        "steps": STEPS,
        "batch size": BATCH,
        "noise phase": SNAP_AT,
        "weights": "of the blocks; embedding and head stay in float",
    }
    with threads(1):
        return replicate(measure, range(SEEDS), workspace, settings=settings)


def compared(task: Task, seed: int) -> ComparedTrainings:
    """The trainings of a seed."""
    vocabulary = task.model_arguments["vocabulary"]
    assert isinstance(vocabulary, int)
    return ComparedTrainings(
        task=task,
        network=partial(
            transformer,
            vocabulary=vocabulary,
            context=CONTEXT,
            width=WIDTH,
            layers=BLOCKS,
            heads=HEADS,
        ),
        optimizer=partial(torch.optim.AdamW, lr=RATE, weight_decay=0.01),
        steps=STEPS,
        batch_size=BATCH,
        seed=seed,
        noise=NOISE,
        snap_at=SNAP_AT,
        include=LAYERS,
    )


LEARNED_PRECISION_CHARACTERS = register(
    Experiment(
        name="learned-precision-characters",
        title="Learned bits against full precision, uniform bits and two relatives, on characters",
        paper=LEARNED_PRECISION,
        run=run,
        scales=("cpu",),
        claims=(
            averages_met(dict.fromkeys(LEARNED, 2.0)),
            *comparisons(within=0.05, of_scores=False),
        ),
    )
)
