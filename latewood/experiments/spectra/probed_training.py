"""A training on the bench of digits, with what spectra say about it at chosen epochs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from latewood.core.schedules import Schedule
from latewood.experiments.spectra.digits_setting import Digits, fit, scores, steps_per_epoch
from latewood.spectra import SpectralProbe, agreement_over_time, model_alignment, truncation_scores

__all__ = ["HIDDEN", "MIDDLE", "Watched", "mean_of_diagonals", "watch"]

HIDDEN = ("linear1.weight", "linear2.weight", "linear3.weight")
MIDDLE = "linear2.weight->linear3.weight"


@dataclass
class Watched:
    """What was seen, by epoch.

    Args:
        folder: of the snapshots, one per epoch looked at.
        per_epoch: steps of an epoch.
        ranks: effective rank by matrix.
        alignments: by pair of neighbours, the score of their first ten directions.
        peaks: by pair, the largest entry of their alignment's diagonal.
        losses: of the training part, whole ("full") and with one part of the spectra.
        error: of the training part.
    """

    folder: Path
    per_epoch: int
    ranks: dict[int, dict[str, float]] = field(default_factory=dict)
    alignments: dict[int, dict[str, float]] = field(default_factory=dict)
    peaks: dict[int, dict[str, float]] = field(default_factory=dict)
    losses: dict[int, dict[str, float]] = field(default_factory=dict)
    error: dict[int, float] = field(default_factory=dict)


def watch(
    model: nn.Module,
    data: Digits,
    optimizer: torch.optim.Optimizer,
    *,
    epochs: int,
    at: Sequence[int],
    batch_size: int,
    seed: int,
    folder: Path,
    schedule: Schedule | None = None,
) -> Watched:
    """Trains a model and looks at it before the first epoch, after some, and after the last.

    Args:
        model: a perceptron of the bench.
        data: what to train on.
        optimizer: of the model's parameters.
        epochs: passes over the data.
        at: epochs after which to look.
        batch_size: samples per step.
        seed: of the order of the data.
        folder: where the snapshots go.
        schedule: factor on the learning rate by progress; constant if None.
    """
    per_epoch = steps_per_epoch(data, batch_size)
    seen = Watched(folder, per_epoch)
    wanted = {0, *at, epochs}
    probe = SpectralProbe(model, every=1, folder=folder, vectors=128, half=False)

    def observe(step: int) -> None:
        epoch, rest = divmod(step, per_epoch)
        if rest or epoch not in wanted:
            return
        (observation,) = probe.observe(step)
        ranks = observation.values.items()
        seen.ranks[epoch] = {name.partition("/")[2]: rank for name, rank in ranks}
        pairs = model_alignment(model)
        seen.alignments[epoch] = {name: pair.score.item() for name, pair in pairs.items()}
        seen.peaks[epoch] = {name: pair.diagonal.max().item() for name, pair in pairs.items()}
        parts = truncation_scores(model, lambda part: scores(part, data.train))
        seen.losses[epoch] = {name: score["loss"] for name, score in parts.items()}
        seen.error[epoch] = parts["full"]["error"]

    fit(
        model,
        data,
        optimizer,
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
        schedule=schedule,
        observe=observe,
    )
    return seen


def mean_of_diagonals(seen: Watched, epoch: int, first: int, last: int) -> float:
    """How far vectors ``first`` to ``last`` (from 1) are where they end, in the hidden matrices.

    The agreement with the last snapshot, its mean over these vectors and the hidden matrices.
    """
    over_time = agreement_over_time(seen.folder, "final")
    place = over_time.steps.index(epoch * seen.per_epoch)
    parts: list[Tensor] = [
        over_time.diagonals[name][place, first - 1 : last].mean() for name in HIDDEN
    ]
    return torch.stack(parts).mean().item()
