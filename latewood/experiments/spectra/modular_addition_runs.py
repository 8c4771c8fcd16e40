"""Runs of modular addition and the landmarks of grokking in their curves."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from latewood.spectra import alignment, effective_rank, read_snapshot, snapshot_paths
from latewood.training.recipe import parse_recipe
from latewood.training.run import train
from latewood.training.run_folder import RunFolder

__all__ = ["EMBEDDING", "IN_PROJ", "Curves", "addition", "landmarks", "run_addition"]

RecipeSection = dict[str, Any]

EMBEDDING = "embedding.tokens.weight"
IN_PROJ = "block.attention.in_proj_weight"
GROKKED = 0.01
BY_HEART = 0.01


@dataclass
class Curves:
    """What a run looks like by step.

    Args:
        error: share of wrong answers on the pairs held out.
        training_error: the same on the pairs learned from.
        ranks: effective rank by matrix, then by step.
        largest: largest singular value of the attention's input projection.
        embedding_alignment: score of the embedding's with that projection's first directions.
    """

    error: dict[int, float] = field(default_factory=dict)
    training_error: dict[int, float] = field(default_factory=dict)
    ranks: dict[str, dict[int, float]] = field(default_factory=dict)
    largest: dict[int, float] = field(default_factory=dict)
    embedding_alignment: dict[int, float] = field(default_factory=dict)

    def mean_rank(self, step: int) -> float:
        """The effective rank after ``step`` steps, the mean over all matrices."""
        return math.fsum(ranks[step] for ranks in self.ranks.values()) / len(self.ranks)


def addition(
    *,
    p: int,
    fraction: float,
    steps: int,
    every: int,
    lr: float,
    weight_decay: float,
    seed: int = 0,
    **more: Any,
) -> RecipeSection:
    """The recipe of one full-batch run.

    Args:
        p: modulus.
        fraction: share of the table to learn from.
        steps: full-batch steps.
        every: steps between two looks at errors and spectra.
        lr: learning rate of AdamW.
        weight_decay: on all parameters.
        seed: of weights and of the table's shuffle.
        more: arguments of the model, and "schedule".
    """
    schedule = more.pop("schedule", {"name": "constant"})
    return {
        "task": {"name": "modular_addition", "p": p, "fraction": fraction, "seed": seed},
        "model": {"name": "grokking_transformer", "tabulated": True, **more},
        "optimizer": {
            "name": "adamw",
            "lr": lr,
            "betas": [0.9, 0.98],
            "eps": 1e-8,
            "weight_decay": weight_decay,
        },
        "schedule": schedule,
        "probes": [{"name": "spectral", "every": every}],
        "steps": steps,
        "batch_size": int(fraction * p * p),
        "decay_all": True,
        "score_training": True,
        "log_every": every,
        "evaluate_every": every,
        "seed": seed,
        "device": "cpu",
    }


def run_addition(recipe: RecipeSection, folder: RunFolder) -> Curves:
    """Trains, or goes on with, a run, and reads its curves.

    Args:
        recipe: as ``addition`` gives it.
        folder: of the run.
    """
    train(parse_recipe(recipe), folder=folder.path, resume=folder.exists)
    curves = Curves()
    for row in folder.read_metrics():
        if row["kind"] == "validation":
            curves.error[int(row["step"])] = 1.0 - row["accuracy"]
        if row["kind"] == "training":
            curves.training_error[int(row["step"])] = 1.0 - row["accuracy"]
    for step, path in snapshot_paths(folder.spectra_folder).items():
        spectra = {spectrum.name: spectrum for spectrum in read_snapshot(path, vectors=True)}
        for name, spectrum in spectra.items():
            rank = effective_rank(torch.tensor(spectrum.values))
            curves.ranks.setdefault(name, {})[step] = float(rank)
        curves.largest[step] = float(spectra[IN_PROJ].values[0])
        # What an embedding writes are its rows' directions, its right vectors.
        written, read = (_tensor(spectra[name].right) for name in (EMBEDDING, IN_PROJ))
        curves.embedding_alignment[step] = float(alignment(written, read).score)
    return curves


def landmarks(curves: Curves) -> dict[str, float]:
    """The moments of a run, and errors and ranks at these moments.

    A moment that does not come is at infinity, and what is read there is NaN.

    Args:
        curves: of one run.

    Returns:
        "by heart at", the first look with a training error under 1 %; "plateau", the error at that
        moment; "onset at", the first look with an error under half of that; "grokked at", the
        first with one under 1 %; mean ranks at "start", at each moment and at the "end"; and more
        of the end.
    """
    last = max(curves.error)
    heart = _first(curves.training_error, BY_HEART)
    plateau = curves.error[int(heart)] if heart < math.inf else math.nan
    later = {step: error for step, error in curves.error.items() if step >= heart}
    onset = _first(later, plateau / 2)
    grokked = _first(later, GROKKED)
    moments = {"by heart": heart, "onset": onset, "grokked": grokked, "end": float(last)}
    marks = {f"{name} at": step for name, step in moments.items() if name != "end"}
    marks |= {"plateau": plateau, "error": curves.error[last], "lowest": min(curves.error.values())}
    for name, step in ({"start": 0.0} | moments).items():
        marks[f"rank, {name}"] = curves.mean_rank(int(step)) if step < math.inf else math.nan
    ends = {name: ranks[last] for name, ranks in curves.ranks.items()}
    return marks | {
        "input rank, start": curves.ranks[IN_PROJ][0],
        "input rank, end": ends[IN_PROJ],
        "lowest rank, end": min(ends.values()),
        "highest rank, end": max(ends.values()),
        "largest value, end": curves.largest[last],
        "alignment, start": curves.embedding_alignment[0],
        "alignment, end": curves.embedding_alignment[last],
    }


def _first(curve: dict[int, float], below: float) -> float:
    return min((step for step, value in curve.items() if value < below), default=math.inf)


def _tensor(vectors: Any) -> Tensor:
    return torch.tensor(vectors)
