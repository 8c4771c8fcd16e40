"""Random labels: what learning by heart does to ranks and to the alignment of neighbours.

Perceptrons on digits, near capacity (64-48-48-48-10) and far over it (64-256-256-256-10), where the
effect on the rank has the other sign.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

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
    mean_of_diagonals,
    train_probed,
)
from latewood.spectra import random_cosine

__all__ = ["EXPERIMENT", "FAR_OVER_CAPACITY", "run", "run_far"]

NEAR, FAR = 48, 256
EPOCHS: dict[Scale, int] = {"quick": 150, "cpu": 400}
RATE: dict[Scale, float] = {"quick": 0.05, "cpu": 0.02}
SEEDS: dict[Scale, int] = {"quick": 1, "cpu": 5}
FAR_EPOCHS = 150
FAR_SEEDS = 2
BATCH_SIZE = 128
# For the moment at which alignment is largest, and for the order in which vectors settle.
MEASURED_EPOCHS = (5, 10, 20, 50, 75, 100, 150, 200)
LABELS = {"true": False, "random": True}


def run(scale: Scale, workspace: Workspace) -> Results:
    """Fits the same networks to true and to permuted labels, seed by seed."""

    def measure(seed: int) -> dict[str, float]:
        measurements: dict[str, float] = {"chance alignment": random_cosine(NEAR)}
        for name, permuted in LABELS.items():
            measurements |= _fitted(scale, workspace, NEAR, EPOCHS[scale], seed, name, permuted)
        return measurements

    settings = {
        "width": NEAR,
        "epochs": EPOCHS[scale],
        "learning rate": RATE[scale],
        "training samples": 1400,
    }
    return replicate(measure, range(SEEDS[scale]), workspace, settings=settings)


def run_far(scale: Scale, workspace: Workspace) -> Results:
    """The same for networks with far more weights than random labels need."""

    def measure(seed: int) -> dict[str, float]:
        measurements: dict[str, float] = {"chance alignment": random_cosine(FAR)}
        for name, permuted in LABELS.items():
            measurements |= _fitted(scale, workspace, FAR, FAR_EPOCHS, seed, name, permuted)
        return measurements

    settings = {
        "width": FAR,
        "epochs": FAR_EPOCHS,
        "learning rate": RATE[scale],
        "training samples": 1400,
    }
    return replicate(measure, range(FAR_SEEDS), workspace, settings=settings)


def _fitted(
    scale: Scale,
    workspace: Workspace,
    width: int,
    epochs: int,
    seed: int,
    name: str,
    permuted: bool,
) -> dict[str, float]:
    model = network((width,) * 3, seed=seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE[scale], momentum=0.9)
    measured_epochs = [epoch for epoch in MEASURED_EPOCHS if epoch < epochs]
    with tempfile.TemporaryDirectory(dir=workspace.folder) as folder:
        probed = train_probed(
            model,
            load(random_labels=permuted),
            optimizer,
            epochs=epochs,
            at=measured_epochs,
            batch_size=BATCH_SIZE,
            seed=seed,
            folder=Path(folder),
        )
        stable = {
            epoch: (
                mean_of_diagonals(probed, epoch, 1, 5),
                mean_of_diagonals(probed, epoch, 21, 30),
            )
            for epoch in measured_epochs
        }
    falls = [probed.ranks[0][matrix] - probed.ranks[epochs][matrix] for matrix in HIDDEN]
    middle = [pairs[MIDDLE] for pairs in probed.alignments.values()]
    first = probed.alignments[epochs]["linear1.weight->linear2.weight"]
    return {
        f"{name} error": probed.error[epochs],
        f"{name} rank": probed.ranks[epochs]["linear2.weight"],
        f"{name} smallest fall": min(falls),
        f"{name} alignment": middle[-1],
        f"{name} peak alignment": max(middle),
        f"{name} first alignment": first,
        f"{name} stability gap": max(top - rest for top, rest in stable.values()),
    }


def _both(results: Results, quantity: str) -> str:
    return f"true {results.text(f'true {quantity}')}, random {results.text(f'random {quantity}')}"


EXPERIMENT = register(
    Experiment(
        name="random-labels",
        title="True against random labels on digits, near the network's capacity",
        paper=SPECTRAL_DYNAMICS,
        run=run,
        scales=("quick", "cpu"),
        claims=(
            Claim(
                "both-are-fitted",
                "True and random labels are both learned to a training error of 0.",
                "[P] figure 8 (C8)",
                "0 and 0",
                lambda r: _both(r, "error"),
                lambda r: max(r.values("true error") + r.values("random error")) == 0,
                scales=("cpu",),
            ),
            Claim(
                "random-labels-need-rank",
                "Near capacity the middle matrix has a higher effective rank with random labels, "
                "by at least 0.04.",
                "[P] figure 8 (C8); [M] .765 to .785 against .679 to .695",
                "figure only",
                lambda r: _both(r, "rank"),
                lambda r: r.difference("random rank", "true rank") >= 0.04,
            ),
            Claim(
                "true-labels-align",
                "The middle neighbours stay aligned with true labels and not with random ones: "
                "their scores differ by at least 0.25 at the end.",
                "[P] figure 8 (C8); [M] .55 to .67 against .07 to .20",
                "figure only",
                lambda r: (
                    f"{_both(r, 'alignment')}; {r.mean('chance alignment'):.2f} for random vectors"
                ),
                lambda r: r.difference("true alignment", "random alignment") >= 0.25,
            ),
            Claim(
                "alignment-appears-and-vanishes",
                "With random labels this alignment appears, then vanishes: it ends at no more "
                "than 60 % of its peak.",
                "[P] figure 8 (C8)",
                "figure only",
                lambda r: (
                    f"peak {r.text('random peak alignment')}, end {r.text('random alignment')}"
                ),
                lambda r: r.mean("random alignment") <= 0.6 * r.mean("random peak alignment"),
            ),
            Claim(
                "without-alignment",
                "Later sharpening: ranks fall and top vectors settle first also where "
                "neighbours do not align. With random labels every hidden matrix loses rank "
                "(0.02 or more), vectors 1 to 5 are at some look 0.2 nearer to their end than "
                "21 to 30, and the first pairs of neighbours end below twice the alignment of "
                "random vectors.",
                "[P] abstract of the later journal version, of which only that was seen",
                "not given",
                lambda r: (
                    f"smallest fall {r.text('random smallest fall')}, gap "
                    f"{r.text('random stability gap')}, alignments "
                    f"{r.text('random first alignment')} and {r.text('random alignment')} "
                    f"({r.mean('chance alignment'):.2f} for random vectors)"
                ),
                lambda r: (
                    r.mean("random smallest fall") >= 0.02
                    and r.mean("random stability gap") >= 0.2
                    and max(r.mean("random first alignment"), r.mean("random alignment"))
                    < 2 * r.mean("chance alignment")
                ),
                scales=("cpu",),
            ),
        ),
    )
)

FAR_OVER_CAPACITY = register(
    Experiment(
        name="random-labels-far",
        title="True against random labels on digits, far over the network's capacity",
        paper=SPECTRAL_DYNAMICS,
        run=run_far,
        scales=("cpu",),
        claims=(
            Claim(
                "both-are-fitted",
                "True and random labels are both learned to a training error of 0.",
                "[P] figure 8 (C8)",
                "0 and 0",
                lambda r: _both(r, "error"),
                lambda r: max(r.values("true error") + r.values("random error")) == 0,
            ),
            Claim(
                "reversed-far-over-capacity",
                "The sign of the effect on the rank depends on capacity: at width 256, far more "
                "than 1400 labels need, random labels leave the middle matrix a lower effective "
                "rank than true ones, by at least 0.02.",
                "[M] .77 (true) against .72 (random); against the sign of the paper's figure 8, "
                "which has 45000 images",
                "not in the paper",
                lambda r: _both(r, "rank"),
                lambda r: r.difference("true rank", "random rank") >= 0.02,
            ),
            Claim(
                "true-labels-align",
                "The middle neighbours' alignment tells the labels apart also here: their scores "
                "differ by at least 0.25 at the end.",
                "[P] figure 8 (C8)",
                "figure only",
                lambda r: (
                    f"{_both(r, 'alignment')}; {r.mean('chance alignment'):.2f} for random vectors"
                ),
                lambda r: r.difference("true alignment", "random alignment") >= 0.25,
            ),
        ),
    )
)
