"""Which directions of an embedding the attention above it comes to read while a network groks.

The figure of the alignment over rank and time, in the small setting of grokking: all directions are
kept at every look, where other runs keep the first sixteen.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from math import inf, nan
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latewood.experiments.papers import SPECTRAL_DYNAMICS
from latewood.experiments.registry import (
    Claim,
    Experiment,
    Results,
    Scale,
    Workspace,
    register,
    replicate,
)
from latewood.experiments.spectra.modular_addition_runs import (
    EMBEDDING,
    IN_PROJ,
    addition,
    landmarks,
    run_addition,
)
from latewood.spectra import alignment, random_cosine, read_snapshot, snapshot_paths
from latewood.training.run_folder import RunFolder

__all__ = ["EXPERIMENT", "THIRDS", "moments"]

WIDTH = 64
SETTING: dict[str, Any] = {
    "p": 47,
    "fraction": 0.65,
    "steps": 3000,
    "lr": 3e-3,
    "width": WIDTH,
    "hidden": 256,
}
EVERY = 50
SEEDS = (0, 1, 2)
THIRDS = ("first", "middle", "last")
MOMENTS = ("at the start", "once it is there", "once it has grokked", "at the end")
THERE = 2.0
"""Times the alignment of random directions that a third must have on average to be there."""


def run(scale: Scale, workspace: Workspace) -> Results:
    """Trains the small grokking network with weight decay and reads its directions, per seed."""

    def measure(seed: int) -> dict[str, float]:
        recipe = addition(**SETTING, every=EVERY, weight_decay=1.0, seed=seed)
        recipe["probes"] = [{"name": "spectral", "every": EVERY, "vectors": WIDTH}]
        with tempfile.TemporaryDirectory(dir=workspace.folder) as folder:
            run_folder = RunFolder(Path(folder) / "run")
            grokked = landmarks(run_addition(recipe, run_folder))["grokked at"]
            diagonals = {
                step: _diagonal(path)
                for step, path in snapshot_paths(run_folder.spectra_folder).items()
            }
        return moments(diagonals, random_cosine(WIDTH), grokked) | {"grokked at": grokked}

    settings = SETTING | {"looks every": EVERY, "weight decay": 1.0}
    return replicate(measure, SEEDS, workspace, settings=settings)


def _diagonal(snapshot: Path) -> Tensor:
    spectra = {spectrum.name: spectrum for spectrum in read_snapshot(snapshot, vectors=True)}
    # What an embedding writes are its rows' directions, its right vectors.
    written, read = (torch.tensor(spectra[name].right) for name in (EMBEDDING, IN_PROJ))
    return alignment(written, read).diagonal


def moments(
    diagonals: Mapping[int, Tensor], random: float, grokked: float = inf
) -> dict[str, float]:
    """The mean alignment of each third of the ranks at four moments.

    Args:
        diagonals: by step, the alignment of the directions of each rank, (R,).
        random: that of random directions.
        grokked: the step at which the network has grokked; infinite if it has not.

    Returns:
        "first at the start", "middle once it is there" and so on; "there at", the first step at
        which a third has at least twice the alignment of random directions. What a moment that
        does not come would tell is NaN.
    """
    thirds = {
        float(step): [part.mean().item() for part in diagonal.tensor_split(3)]
        for step, diagonal in diagonals.items()
    }
    there = min((s for s, means in thirds.items() if max(means) >= THERE * random), default=inf)
    at = dict(zip(MOMENTS, (min(thirds), there, grokked, max(thirds)), strict=True))
    means_at = {
        f"{third} {moment}": mean
        for moment, step in at.items()
        for third, mean in zip(THIRDS, thirds.get(step, [nan] * 3), strict=True)
    }
    return means_at | {"there at": there, "random": random}


def _at(results: Results, moment: str) -> str:
    return ", ".join(f"{third} {results.text(f'{third} {moment}')}" for third in THIRDS)


def _highest(results: Results, third: str, moment: str) -> bool:
    """Whether in every seed no other third is as high at a moment."""
    others = [other for other in THIRDS if other != third]
    return all(
        value > max(results.values(f"{other} {moment}")[seed] for other in others)
        for seed, value in enumerate(results.values(f"{third} {moment}"))
    )


EXPERIMENT = register(
    Experiment(
        name="grokking-alignment",
        title="Alignment of the embedding with the attention over all ranks, while a network groks",
        paper=SPECTRAL_DYNAMICS,
        run=run,
        scales=("cpu",),
        claims=(
            Claim(
                "alignment-appears",
                "At the start the embedding's directions are those that the attention reads as "
                "little as random ones are (every third of the ranks within 1.5 times random); "
                "at the end a third has at least twice the alignment of random ones.",
                "[P] figure 2 (C1); [I] the bounds",
                "figure only",
                lambda r: (
                    f"start: {_at(r, MOMENTS[0])}; end: {_at(r, MOMENTS[3])}; random "
                    f"{r.mean('random'):.2f}"
                ),
                lambda r: (
                    all(
                        max(r.values(f"{third} {MOMENTS[0]}")) <= 1.5 * r.mean("random")
                        for third in THIRDS
                    )
                    and all(
                        max(r.values(f"{third} {MOMENTS[3]}")[seed] for third in THIRDS)
                        >= THERE * r.mean("random")
                        for seed in range(len(r.values("random")))
                    )
                ),
            ),
            Claim(
                "it-climbs-from-the-middle",
                "It climbs from the middle ranks: where it first is there, the middle third of "
                "the ranks has the most of it, and at the end the first third has, in every seed.",
                "[P] figure 2 (C1), at the paper's size, not this; [I] thirds of the ranks",
                "figure only",
                lambda r: (
                    f"there at step {r.text('there at', digits=0)}: {_at(r, MOMENTS[1])}; grokked "
                    f"at {r.text('grokked at', digits=0)}: {_at(r, MOMENTS[2])}; end: "
                    f"{_at(r, MOMENTS[3])}"
                ),
                lambda r: _highest(r, "middle", MOMENTS[1]) and _highest(r, "first", MOMENTS[3]),
            ),
        ),
    )
)
