"""Ranks, truncation, early stability and alignment of neighbours along ordinary training.

Quick and cpu scale: perceptrons 64-128-128-128-10 on digits, seconds a run.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from latewood.core.schedules import cosine
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
from latewood.experiments.spectra.digits_setting import load, network
from latewood.experiments.spectra.probed_training import (
    HIDDEN,
    MIDDLE,
    ProbedRun,
    mean_of_diagonals,
    train_probed,
)
from latewood.spectra import random_cosine, random_effective_rank

__all__ = ["EXPERIMENT"]

EPOCHS: dict[Scale, int] = {"quick": 15, "cpu": 30}
SEEDS: dict[Scale, int] = {"quick": 1, "cpu": 3}
EARLY = (1, 2, 5)
BATCH_SIZE = 32


def run(scale: Scale, workspace: Workspace) -> Results:
    """Trains one network per seed and measures its spectra along the way."""
    epochs = EPOCHS[scale]
    measured_epochs = (*EARLY, 10, 20) if scale == "cpu" else (*EARLY, 10)

    def measure(seed: int) -> dict[str, float]:
        model = network(seed=seed)
        with tempfile.TemporaryDirectory(dir=workspace.folder) as folder:
            probed = train_probed(
                model,
                load(),
                torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
                epochs=epochs,
                at=measured_epochs,
                batch_size=BATCH_SIZE,
                seed=seed,
                folder=Path(folder),
                schedule=cosine(),
            )
            return _measured(probed, epochs)

    settings = {"epochs": epochs, "optimizer": "SGD 0.1, momentum 0.9, cosine", "batch size": 32}
    return replicate(measure, range(SEEDS[scale]), workspace, settings=settings)


def _measured(probed: ProbedRun, epochs: int) -> dict[str, float]:
    measurements = {
        "random rank": random_effective_rank(128, 128),
        "chance alignment": random_cosine(128),
        "alignment at 0": probed.alignments[0][MIDDLE],
        "early alignment": max(probed.alignments[epoch][MIDDLE] for epoch in EARLY),
        "alignment": probed.alignments[epochs][MIDDLE],
        "largest excess of the top half": max(
            losses["top"] - losses["full"] for losses in probed.losses.values()
        ),
        "smallest loss of the bottom half": min(
            losses["bottom"] for epoch, losses in probed.losses.items() if epoch >= 1
        ),
    }
    for part, loss in probed.losses[epochs].items():
        measurements[f"{part} loss"] = loss
    for matrix in (*HIDDEN, "head.weight"):
        layer = matrix.removesuffix(".weight")
        measurements[f"{layer} rank at 0"] = probed.ranks[0][matrix]
        measurements[f"{layer} rank"] = probed.ranks[epochs][matrix]
    measurements["smallest fall"] = min(
        probed.ranks[0][matrix] - probed.ranks[epochs][matrix] for matrix in HIDDEN
    )
    for epoch in EARLY:
        measurements[f"vectors 1 to 5 at epoch {epoch}"] = mean_of_diagonals(probed, epoch, 1, 5)
        measurements[f"vectors 31 to 40 at epoch {epoch}"] = mean_of_diagonals(
            probed, epoch, 31, 40
        )
    return measurements


def _ranks(results: Results) -> str:
    layers = ("linear1", "linear2", "linear3", "head")
    return ", ".join(
        f"{layer} {results.text(f'{layer} rank at 0')} to {results.text(f'{layer} rank')}"
        for layer in layers
    )


def _stability(results: Results) -> str:
    return "; ".join(
        f"epoch {epoch}: {results.text(f'vectors 1 to 5 at epoch {epoch}')} against "
        f"{results.text(f'vectors 31 to 40 at epoch {epoch}')}"
        for epoch in EARLY
    )


def _stability_gap(results: Results) -> float:
    return results.difference("vectors 1 to 5 at epoch 5", "vectors 31 to 40 at epoch 5")


def _alignments(results: Results) -> str:
    return (
        f"{results.text('alignment at 0')} at the start, {results.text('early alignment')} in the "
        f"first epochs, {results.text('alignment')} at the end; "
        f"{results.mean('chance alignment'):.2f} for random vectors"
    )


EXPERIMENT = register(
    Experiment(
        name="rank-and-stability",
        title="Rank minimisation, early stability, truncation and alignment, on digits",
        paper=SPECTRAL_DYNAMICS,
        run=run,
        scales=("quick", "cpu"),
        claims=(
            Claim(
                "rank-minimisation",
                "Training lowers the effective rank of every hidden matrix, by at least 0.08.",
                "[P] figure 3 (C2); [M] square ones from .80 to .63 to .69, the head .99 to .90",
                "figure only",
                _ranks,
                lambda r: min(r.values("smallest fall")) >= 0.08,
            ),
            Claim(
                "starts-at-random",
                "It starts where the quarter-circle law has a random square matrix, within 0.01.",
                "[D] from the quarter-circle law, 0.805",
                "not in the paper",
                lambda r: (
                    f"{r.text('linear2 rank at 0', digits=3)} and "
                    f"{r.text('linear3 rank at 0', digits=3)}; law {r.mean('random rank'):.3f}"
                ),
                lambda r: all(
                    abs(r.difference(f"{layer} rank at 0", "random rank")) <= 0.01
                    for layer in ("linear2", "linear3")
                ),
            ),
            Claim(
                "top-half-suffices",
                "At every epoch looked at, the top half of all spectra has the whole network's "
                "training loss within 0.02.",
                "[P] figure 4 (C3); [M] .0003 whole, .0004 top half",
                "figure only",
                lambda r: (
                    f"at most {r.text('largest excess of the top half', digits=4)} more; at the "
                    f"end {r.text('full loss', digits=4)} and {r.text('top loss', digits=4)}"
                ),
                lambda r: max(r.values("largest excess of the top half")) <= 0.02,
            ),
            Claim(
                "bottom-half-does-not",
                "From the first epoch on, the bottom half has a loss of 1 or more.",
                "[P] figure 4 (C3); [M] 3.06 at the end",
                "figure only",
                lambda r: (
                    f"at least {r.text('smallest loss of the bottom half')}; at the end "
                    f"{r.text('bottom loss')}"
                ),
                lambda r: min(r.values("smallest loss of the bottom half")) >= 1,
            ),
            Claim(
                "early-stability",
                "Top singular vectors settle first: at epoch 5 the agreement with the final ones "
                "is at least 0.25 higher for vectors 1 to 5 than for 31 to 40.",
                "[P] figure 9 (C9); [M] .41, .58, .48 against .07, .22, .12 by matrix, at epoch 5",
                "figure only",
                _stability,
                lambda r: _stability_gap(r) >= 0.25,
            ),
            Claim(
                "no-alignment-at-the-start",
                "At the start neighbouring layers do not align: the score of their first ten "
                "directions is below twice that of random vectors.",
                "[P] figure 5 (C4)",
                "figure only",
                _alignments,
                lambda r: r.mean("alignment at 0") < 2 * r.mean("chance alignment"),
            ),
            Claim(
                "early-alignment-diffuses",
                "Some alignment appears in the first five epochs, then diffuses: the final score "
                "is below the early one.",
                "[P] figure 5 (C4); that it is clear only for queries and keys and for the "
                "recurrent network is not tested at this scale",
                "figure only",
                _alignments,
                lambda r: (
                    r.mean("early alignment") >= 2 * r.mean("chance alignment")
                    and r.mean("alignment") < r.mean("early alignment")
                ),
                scales=("cpu",),
            ),
            Claim(
                "without-alignment",
                "Later sharpening, strictly: rank falls (0.08) and top vectors settle first "
                "(0.25) while neighbours stay unaligned to the end, below twice the score of "
                "random vectors.",
                "[P] abstract of the later journal version, of which only that was seen; "
                "[I] the bound",
                "not given",
                lambda r: (
                    f"smallest fall {r.text('smallest fall')}, gap {_stability_gap(r):.2f}; "
                    f"alignment {_alignments(r)}"
                ),
                lambda r: (
                    min(r.values("smallest fall")) >= 0.08
                    and _stability_gap(r) >= 0.25
                    and r.mean("alignment") < 2 * r.mean("chance alignment")
                ),
                scales=("cpu",),
            ),
        ),
    )
)
