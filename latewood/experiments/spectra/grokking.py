"""Grokking: networks that learn addition modulo a prime by heart first, and understand it later.

The small setting takes seconds at the quick scale and minutes at cpu. The paper's own takes about
twenty minutes of one idle core at cpu, as the network answers from tables of what its attention
reads, and its other settings, cut short, another twenty-five; full has all steps and seeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

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
from latewood.experiments.spectra.modular_addition_runs import addition, landmarks, run_addition
from latewood.training.run_folder import RunFolder

__all__ = ["PAPER", "SMALL", "run_paper", "run_small"]

Arguments = dict[str, Any]

SMALL_SETTING: dict[Scale, Arguments] = {
    "quick": {"p": 23, "fraction": 0.8, "steps": 400, "lr": 5e-3, "width": 32, "hidden": 128},
    "cpu": {"p": 47, "fraction": 0.65, "steps": 3000, "lr": 3e-3, "width": 64, "hidden": 256},
}
SMALL_DECAY: dict[Scale, float] = {"quick": 2.0, "cpu": 1.0}
SMALL_EVERY: dict[Scale, int] = {"quick": 25, "cpu": 50}
# So small a table is learned in hundreds of steps or in thousands: a test takes a seed that is
# among the fast ones, and only the other scale says anything about seeds.
SMALL_SEEDS: dict[Scale, tuple[int, ...]] = {"quick": (1,), "cpu": (0, 1, 2)}

PAPER_SETTING: Arguments = {"p": 113, "fraction": 0.3, "lr": 1e-3, "weight_decay": 1.0}
PAPER_STEPS: dict[Scale, int] = {"cpu": 18_000, "full": 40_000}
PAPER_SEEDS: dict[Scale, tuple[int, ...]] = {"cpu": (0,), "full": (0, 1, 2)}
PAPER_EVERY = 500
# Seeds differ by thousands of steps, so the steep fall is looked for around the moment at which the
# error has fallen to half of its plateau.
BEFORE, AFTER = 2_000, 3_000

# The paper's other settings; "slingshot" keeps the norms.
PAPER_OTHERS: dict[str, Arguments] = {
    "no decay": {"weight_decay": 0.0},
    "more data": {"weight_decay": 0.0, "fraction": 0.9},
    "slingshot": {
        "p": 97,
        "fraction": 0.7,
        "weight_decay": 0.0,
        "norm": True,
        "steps": 100_000,
        "schedule": {"name": "constant", "warmup": 1e-4},
    },
}
# What some 25 minutes of one core allow. Without decay that is as many steps as the run with decay
# needed; of the slingshot's, the first thirtieth, with the same ten steps of warm-up.
CPU_OTHERS: dict[str, Arguments] = {
    "no decay": {"steps": 14_500},
    "more data": {"steps": 1_500},
    "slingshot": {"steps": 3_000, "schedule": {"name": "constant", "warmup": 10 / 3_000}},
}


def run_small(scale: Scale, workspace: Workspace) -> Results:
    """Trains with weight decay, without, and without on more of the table, seed by seed."""
    setting = SMALL_SETTING[scale] | {"every": SMALL_EVERY[scale]}
    variants = {
        "": {"weight_decay": SMALL_DECAY[scale]},
        "no decay: ": {"weight_decay": 0.0},
    }
    if scale == "cpu":
        variants["more data: "] = {"weight_decay": 0.0, "fraction": 0.9}

    def measure(seed: int) -> dict[str, float]:
        measurements: dict[str, float] = {"share held out": 1.0 - setting["fraction"]}
        for name, changes in variants.items():
            recipe = addition(**(setting | changes), seed=seed)
            marks = landmarks(run_addition(recipe, _folder(workspace, name, seed)))
            measurements |= {name + key: value for key, value in marks.items()}
        return measurements

    settings = setting | {"weight decay": SMALL_DECAY[scale]}
    return replicate(measure, SMALL_SEEDS[scale], workspace, settings=settings)


def run_paper(scale: Scale, workspace: Workspace) -> Results:
    """Trains the paper's configuration and its other three, which are shorter at cpu."""
    setting = PAPER_SETTING | {"steps": PAPER_STEPS[scale], "every": PAPER_EVERY}
    variants = {"": Arguments()}
    for name, changes in PAPER_OTHERS.items():
        variants[f"{name}: "] = changes | (CPU_OTHERS[name] if scale == "cpu" else {})

    def measure(seed: int) -> dict[str, float]:
        measurements: dict[str, float] = {"share held out": 1.0 - PAPER_SETTING["fraction"]}
        for name, changes in variants.items():
            recipe = addition(**(setting | changes), seed=seed)
            folder = _folder(workspace, name, seed)
            curves = run_addition(recipe, folder)
            measurements |= {name + key: value for key, value in landmarks(curves).items()}
            measurements |= {
                f"{name}error at {step}": value for step, value in curves.error.items()
            }
            steps = (0, *curves.error)
            measurements |= {f"{name}rank at {step}": curves.mean_rank(step) for step in steps}
            measurements[f"{name}steps"] = max(curves.error)
            if not name:
                measurements["minutes"] = folder.summary["seconds"] / 60
        return measurements

    settings = setting | {"optimizer": "AdamW, betas 0.9 and 0.98, decay on all parameters"}
    return replicate(measure, PAPER_SEEDS[scale], workspace, settings=settings)


def _folder(workspace: Workspace, variant: str, seed: int) -> RunFolder:
    name = variant.removesuffix(": ").replace(" ", "-") or "decay"
    return RunFolder(workspace.folder / f"{name}-{seed}")


def _moments(results: Results) -> str:
    names = ("start", "by heart", "onset", "grokked", "end")
    return ", ".join(f"{name} {results.text(f'rank, {name}')}" for name in names)


def _near(results: Results, curve: str, offset: int) -> list[float]:
    """A curve so many steps after each seed's onset; NaN where there is none."""
    return [
        results.values(f"{curve} at {int(onset) + offset}")[seed] if onset < math.inf else math.nan
        for seed, onset in enumerate(results.values("onset at"))
    ]


def _rank_near(results: Results, offset: int) -> list[float]:
    return _near(results, "rank", offset)


def _listed(values: list[float]) -> str:
    return ", ".join(f"{value:.3f}" for value in values)


def _pairs(results: Results, first: str, second: str) -> Iterator[tuple[float, float]]:
    return zip(results.values(first), results.values(second), strict=True)


SMALL = register(
    Experiment(
        name="grokking",
        title="Grokking of addition modulo a small number, with weight decay and without",
        paper=SPECTRAL_DYNAMICS,
        run=run_small,
        scales=("quick", "cpu"),
        claims=(
            Claim(
                "weight-decay-generalises",
                "With weight decay the error on pairs held out falls under 1 %, in every seed; "
                "without it, it never does.",
                "[P] figure 2 (C1); [M] p = 47: under 0.2 % by step 1950 in five seeds",
                "figure only",
                lambda r: (
                    f"under 1 % at step {r.text('grokked at', digits=0)}; without decay at best "
                    f"{r.text('no decay: lowest', scale=100, unit='%', digits=1)}"
                ),
                lambda r: (
                    max(r.values("grokked at")) < math.inf
                    and max(r.values("no decay: grokked at")) == math.inf
                ),
            ),
            Claim(
                "both-learn-by-heart",
                "With and without decay the training error falls under 1 % first: without decay "
                "nothing follows, and the plateau is not chance. A network that has learned by "
                "heart also knows (j, i) where it has seen (i, j), so its error is near the share "
                "held out, within 15 points.",
                "[M] .375 and .337 without decay, with .35 held out",
                "not in the paper",
                lambda r: (
                    f"by heart at step {r.text('by heart at', digits=0)} and "
                    f"{r.text('no decay: by heart at', digits=0)}; error without decay "
                    f"{r.text('no decay: error')} with {r.mean('share held out'):.2f} held out"
                ),
                lambda r: (
                    max(r.values("no decay: by heart at")) < math.inf
                    and all(a < b for a, b in _pairs(r, "by heart at", "grokked at"))
                    and all(
                        abs(a - b) <= 0.15
                        for a, b in _pairs(r, "no decay: error", "share held out")
                    )
                ),
                scales=("cpu",),
            ),
            Claim(
                "rank-collapses",
                "The effective rank of the attention's input projection ends at least 0.3 lower "
                "with decay than without, and every matrix ends below its mean at the start.",
                "[P] figure 2 (C1); [M] .38 to .44 against .87 and more",
                "figure only",
                lambda r: (
                    f"{r.text('input rank, end')} against {r.text('no decay: input rank, end')}; "
                    f"the highest of all matrices {r.text('highest rank, end')}"
                ),
                lambda r: (
                    r.difference("no decay: input rank, end", "input rank, end") >= 0.3
                    and all(a < b for a, b in _pairs(r, "highest rank, end", "rank, start"))
                ),
            ),
            Claim(
                "rank-falls-before-too",
                "A caveat to the coincidence of both falls: decay lowers the mean rank by 0.1 "
                "or more before the error on pairs held out has moved to half its plateau.",
                "[M] the rank falls in the phase of learning by heart already",
                "not visible on the paper's axis",
                _moments,
                lambda r: all(b <= a - 0.1 for a, b in _pairs(r, "rank, start", "rank, onset")),
            ),
            Claim(
                "more-data-needs-no-decay",
                "With 90 % of the table and no decay the network generalises (error under 5 %), "
                "with larger singular values than the network that grokked.",
                "[P] figure 2 (C1)",
                "figure only",
                lambda r: (
                    f"error {r.text('more data: error', scale=100, unit='%', digits=1)}, largest "
                    f"value {r.text('more data: largest value, end')} against "
                    f"{r.text('largest value, end')}"
                ),
                lambda r: (
                    r.mean("more data: error") <= 0.05
                    and r.difference("more data: largest value, end", "largest value, end") > 0
                ),
                scales=("cpu",),
            ),
        ),
    )
)

PAPER = register(
    Experiment(
        name="grokking-paper",
        title="Grokking of addition modulo 113 from 30 % of the table, the paper's configuration",
        paper=SPECTRAL_DYNAMICS,
        run=run_paper,
        scales=("cpu", "full"),
        claims=(
            Claim(
                "groks",
                "The error on pairs held out falls under 1 % within the run, long after the "
                "training error has (at least five times as many steps).",
                "[P] figure 2 (C1); [M] by heart by step 1500, under 1 % by step 23000 (one seed)",
                "figure only",
                lambda r: (
                    f"by heart at step {r.text('by heart at', digits=0)}, error "
                    f"{r.mean('plateau'):.2f} then; under 1 % at step "
                    f"{r.text('grokked at', digits=0)}; "
                    f"{r.text('minutes', unit='minutes', digits=0)} of training"
                ),
                lambda r: all(
                    5 * a <= b < math.inf for a, b in _pairs(r, "by heart at", "grokked at")
                ),
            ),
            Claim(
                "rank-falls-steeply-with-the-error",
                f"From {BEFORE} steps before the error is down to half of its plateau until "
                f"{AFTER} steps after, the mean effective rank of the six matrices falls to 0.75 "
                "of itself or less; in as many steps before that, by less than half as much.",
                "[P] figure 2 (C1); [M] .512 at step 20000, .343 at 25000, .526 at 15000, with "
                "half of the plateau at 21500, in one seed; [I] the window",
                "figure only",
                lambda r: (
                    f"half of the plateau at step {r.text('onset at', digits=0)}; rank "
                    f"{_listed(_rank_near(r, -2 * BEFORE - AFTER))} to "
                    f"{_listed(_rank_near(r, -BEFORE))} to {_listed(_rank_near(r, AFTER))}; at the "
                    f"moments: {_moments(r)}"
                ),
                lambda r: all(
                    after <= 0.75 * before and earlier - before < 0.5 * (before - after)
                    for earlier, before, after in zip(
                        _rank_near(r, -2 * BEFORE - AFTER),
                        _rank_near(r, -BEFORE),
                        _rank_near(r, AFTER),
                        strict=True,
                    )
                ),
            ),
            Claim(
                "rank-falls-before-too",
                "A caveat: weight decay has taken a third of the mean rank before the error "
                f"moves ({BEFORE} steps before it is down to half of its plateau). What is new at "
                "the transition is the speed, not the direction.",
                "[M] .895 to .512 by step 20000, with the error on its plateau",
                "not visible on the paper's axis of 40000 steps",
                lambda r: (
                    f"start {r.text('rank, start', digits=3)}, by heart "
                    f"{r.text('rank, by heart', digits=3)}, before the error moves "
                    f"{_listed(_rank_near(r, -BEFORE))}, with error "
                    f"{_listed(_near(r, 'error', -BEFORE))}"
                ),
                lambda r: all(
                    before <= 0.67 * start
                    for start, before in zip(
                        r.values("rank, start"), _rank_near(r, -BEFORE), strict=True
                    )
                ),
            ),
            Claim(
                "plateau-is-not-chance",
                f"Up to {BEFORE} steps before it is down to half of its plateau the error is near "
                "the share of pairs held out (within 15 points), not at 112/113: a network that "
                "has learned by heart also knows (j, i) where it has seen (i, j).",
                "[M] .71 to .69",
                "not in the paper",
                lambda r: (
                    f"by heart {r.text('plateau', digits=3)}, before it falls "
                    f"{_listed(_near(r, 'error', -BEFORE))}"
                ),
                lambda r: all(
                    abs(error - r.mean("share held out")) <= 0.15
                    for error in (*r.values("plateau"), *_near(r, "error", -BEFORE))
                ),
            ),
            Claim(
                "every-matrix-collapses",
                "After the transition every one of the six matrices has an effective rank under "
                "0.6 (a fresh one has 0.8 to 0.97).",
                "[P] figure 2 (C1); [M] .28 to .37 for three of them",
                "figure only",
                lambda r: f"{r.text('lowest rank, end')} to {r.text('highest rank, end')}",
                lambda r: max(r.values("highest rank, end")) < 0.6,
            ),
            Claim(
                "embedding-aligns",
                "What the embedding writes most is at the end what the attention reads most: the "
                "score of their first ten directions has at least doubled.",
                "[P] figure 2 (C1)",
                "figure only",
                lambda r: f"{r.text('alignment, start')} to {r.text('alignment, end')}",
                lambda r: all(
                    b >= 2 * a for a, b in _pairs(r, "alignment, start", "alignment, end")
                ),
            ),
            Claim(
                "needs-decay",
                "Without decay, over as many steps, neither fall happens: the error on pairs held "
                "out stays above a half, and the rank ends at least 0.2 above that of the network "
                "that has just grokked.",
                "[P] figure 2 (C1)",
                "figure only",
                lambda r: (
                    f"after {r.text('no decay: steps', digits=0)} error at best "
                    f"{r.text('no decay: lowest')}, rank {r.text('no decay: rank, end')} against "
                    f"{r.text('rank, grokked')}"
                ),
                lambda r: (
                    min(r.values("no decay: lowest")) > 0.5
                    and r.difference("no decay: rank, end", "rank, grokked") >= 0.2
                ),
            ),
            Claim(
                "more-data-needs-no-decay",
                "With 90 % of the table and no decay the network generalises (error under 5 %), "
                "with larger singular values than the network that grokked.",
                "[P] figure 2 (C1)",
                "figure only",
                lambda r: (
                    f"after {r.text('more data: steps', digits=0)} error "
                    f"{r.text('more data: error', scale=100, unit='%', digits=1)}, rank "
                    f"{r.text('more data: rank, start')} to {r.text('more data: rank, end')}, "
                    f"largest value {r.text('more data: largest value, end')} against "
                    f"{r.text('largest value, end')}"
                ),
                lambda r: (
                    max(r.values("more data: error")) < 0.05
                    and r.difference("more data: largest value, end", "largest value, end") > 0
                ),
            ),
            Claim(
                "slingshot-is-gradual",
                "With layer norms and no decay (the slingshot's setting) the error falls too, "
                "under 5 %, and the rank with it, by 0.1 or more, in 100000 steps; cpu has the "
                "first 3000 of them, too few to expect it.",
                "[P] figure 2 (C1); [C] norms kept, full batches",
                "figure only",
                lambda r: (
                    f"after {r.text('slingshot: steps', digits=0)} error "
                    f"{r.text('slingshot: error', scale=100, unit='%', digits=1)}, rank "
                    f"{r.text('slingshot: rank, start')} to {r.text('slingshot: rank, end')}"
                ),
                lambda r: (
                    max(r.values("slingshot: error")) < 0.05
                    and r.difference("slingshot: rank, start", "slingshot: rank, end") >= 0.1
                ),
            ),
        ),
    )
)
