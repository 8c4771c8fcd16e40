"""Parts of grow-and-prune left out, one at a time: clocks, sampling, freeze, estimator.

Quick and cpu scale: digits and the convolutional network 1-32-64-64.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer

from latewood.core import recalibrate_batch_norm
from latewood.experiments.registry import (
    Bench,
    Claim,
    Experiment,
    Results,
    Scale,
    register,
    replicate,
)
from latewood.experiments.sparsity.flop_counted_training import (
    Course,
    build,
    dense_training_macs,
    fit,
    score,
)
from latewood.experiments.sparsity.grow_and_prune import PAPER
from latewood.experiments.sparsity.growth_tasks import images
from latewood.sparsity.structured import StructuredSparsification
from latewood.training.randomness import derive

__all__ = ["CLOCKS", "REPAIRS", "Thresholded"]

HALF, FIFTH = 0.5, 0.2
EPOCHS: dict[Scale, int] = {"quick": 4, "cpu": 60}
SEEDS: dict[Scale, int] = {"quick": 1, "cpu": 3}


class Watched(StructuredSparsification):
    """The method, with the share of the budgeted size that each epoch's network had."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.shares: list[float] = []

    def restructure(self, optimizer: Optimizer) -> bool:
        """Makes the network of the coming epoch and notes its size."""
        changed = super().restructure(optimizer)
        self.shares.append(self.metrics()["budget/share"])
        return changed


class Thresholded(Watched):
    """No sampling: in an epoch there is what has a logit above 0."""

    def restructure(self, optimizer: Optimizer) -> bool:
        """Makes the network of the coming epoch, with chances that are 0 or 1."""
        if self.epoch == 0 or self.epoch >= self.freeze_epoch:
            return super().restructure(optimizer)
        logits = [each for group in self.parameter_groups() for each in group["params"]]
        before = [each.detach().clone() for each in logits]
        with torch.no_grad():
            for each in logits:
                each.copy_(torch.where(each > 0, SURE, -SURE))
        changed = super().restructure(optimizer)
        with torch.no_grad():
            for each, old in zip(logits, before, strict=True):
                each.copy_(old)
        return changed


SURE = 1e4
"""A logit whose sigmoid is 0 or 1 in any precision, at every temperature."""


def _train(
    course: Course,
    seed: int,
    keep: float,
    kind: type[Watched] = Watched,
    **options: Any,
) -> dict[str, float]:
    """Grows once; sizes as shares of the full network's parameters."""
    model = build(course, seed)
    method = kind(
        model,
        course.task.example_inputs,
        budget={"parameters": keep},
        total_steps=course.epochs * course.period,
        steps_per_epoch=course.period,
        seed=derive(seed, "structures"),
        **options,
    )
    spent = fit(course, model, epochs=course.epochs, seed=seed, method=method)
    slim = method.finalize()
    hard = score(course, slim)
    parts = torch.arange(len(course.task.train)).split(course.batch_size)[: course.period]
    recalibrate_batch_norm(slim, [course.task.train.gather(part)[:1] for part in parts])
    return {
        "accuracy": hard,
        "recalibrated": score(course, slim),
        "last share": method.shares[-1],
        "largest share": max(method.shares),
        "off": abs(method.shares[-1] - keep),
        "training": spent / dense_training_macs(course),
    }


def _measure(
    variants: dict[str, dict[str, Any]], keep: float, scale: Scale, bench: Bench
) -> Results:
    course = images(epochs=EPOCHS[scale])

    def measure(seed: int) -> dict[str, float]:
        found: dict[str, float] = {}
        for name, options in variants.items():
            trained = _train(course, seed, keep, **options)
            found |= {f"{name} {quantity}": value for quantity, value in trained.items()}
        return found

    settings = {"epochs": course.epochs, "budget": f"{keep:g} of the parameters"}
    return replicate(measure, range(SEEDS[scale]), bench, settings=settings)


def run_clocks(scale: Scale, bench: Bench) -> Results:
    """The plain algorithm to half of the parameters: its clocks and its sampling."""
    plain: dict[str, Any] = {"preset": "paper"}
    variants: dict[str, dict[str, Any]] = {
        "own clocks": plain,
        "one clock": {**plain, "temperature": "global"},
        "no sampling": {**plain, "kind": Thresholded},
    }
    return _measure(variants, HALF, scale, bench)


def run_repairs(scale: Scale, bench: Bench) -> Results:
    """What this package adds to the plain algorithm, to a fifth of the parameters."""
    variants: dict[str, dict[str, Any]] = {
        "recommended": {},
        "without freeze": {"freeze": 1.0},
        "plain": {"preset": "paper"},
        "straight-through": {"estimator": "ste"},
    }
    return _measure(variants, FIFTH, scale, bench)


def _line(results: Results, *names: str) -> str:
    return ", ".join(f"{name} {results.text(name, scale=100, unit='%')}" for name in names)


def _missed(results: Results, name: str, by: float) -> int:
    return sum(off > by for off in results.values(f"{name} off"))


_EARLIER = "an earlier measurement in the same setting"

CLOCKS = register(
    Experiment(
        name="grow-and-prune-clocks",
        title="Clocks and sampling of the plain grow-and-prune algorithm, digits, to half",
        paper=PAPER,
        run=run_clocks,
        scales=("quick", "cpu"),
        claims=(
            Claim(
                "own-clocks-meet-the-budget",
                "With a clock for every structure the last sampled network is within 5 % of the "
                "full network of the budget, with every seed.",
                f"[R] one clock would starve structures born late; [V] {_EARLIER}",
                "shares kept .495, .467, .474",
                lambda r: _line(r, "own clocks last share"),
                lambda r: _missed(r, "own clocks", 0.05) == 0,
                scales=("cpu",),
            ),
            Claim(
                "one-clock-misses-it",
                "With one clock for all it is off by more than 10 % with at least two of three "
                "seeds.",
                f"[R] the reason for clocks of their own; [V] {_EARLIER}",
                "shares kept .66, .042, .001",
                lambda r: _line(r, "one clock last share"),
                lambda r: 3 * _missed(r, "one clock", 0.1) >= 2 * len(r.values("one clock off")),
                scales=("cpu",),
            ),
            Claim(
                "sampling-keeps-epochs-small",
                "Without sampling (what has a logit above 0 is there) the structures of a layer "
                "appear together: the largest network of the run is larger by 10 % of the full "
                "one or more.",
                "[P] the caption of figure 1: components are sampled, from sigmoid(beta s); [D] "
                "absent structures feel the same penalty and nothing else",
                "figure only",
                lambda r: _line(
                    r,
                    "own clocks largest share",
                    "no sampling largest share",
                    "own clocks training",
                    "no sampling training",
                ),
                lambda r: (
                    r.difference("no sampling largest share", "own clocks largest share") >= 0.1
                ),
                scales=("cpu",),
            ),
        ),
    )
)

REPAIRS = register(
    Experiment(
        name="grow-and-prune-repairs",
        title="What the plain grow-and-prune algorithm lacked, digits, to a fifth",
        paper=PAPER,
        run=run_repairs,
        scales=("quick", "cpu"),
        claims=(
            Claim(
                "never-above-the-budget",
                "Fixing the structures under the budget ends at most 1 % of the full network "
                "below it and never above.",
                f"[V] {_EARLIER}",
                "unused at most 0.64 %",
                lambda r: _line(r, "recommended last share"),
                lambda r: all(
                    FIFTH - 0.01 <= share <= FIFTH for share in r.values("recommended last share")
                ),
            ),
            Claim(
                "freeze",
                "Fixed on the way, the network is at least 5 points better than when the same "
                "selection is made at the end.",
                f"[V] {_EARLIER}, one run",
                "96.7 to 10.7 % by a threshold at the very end",
                lambda r: _line(r, "recommended accuracy", "without freeze accuracy"),
                lambda r: r.difference("recommended accuracy", "without freeze accuracy") >= 0.05,
                scales=("cpu",),
            ),
            Claim(
                "batch-norm-repairs-a-late-choice",
                "Most of that loss is stale batch-norm statistics: recalibrated, the late choice "
                "is at most 5 points behind.",
                f"[V] {_EARLIER}: never change the set without recalibration",
                "-",
                lambda r: _line(r, "recommended accuracy", "without freeze recalibrated"),
                lambda r: (
                    r.difference("recommended accuracy", "without freeze recalibrated") <= 0.05
                ),
                scales=("cpu",),
            ),
            Claim(
                "repairs-together",
                "The repaired method beats the plain algorithm by 1 point or more, even when the "
                "plain one's batch norms are recalibrated.",
                f"[V] {_EARLIER}, at a tenth",
                "98.2 % against 74, 92, 50 %",
                lambda r: _line(r, "recommended accuracy", "plain accuracy", "plain recalibrated"),
                lambda r: r.difference("recommended accuracy", "plain recalibrated") >= 0.01,
                scales=("cpu",),
            ),
            Claim(
                "estimators-alike",
                "Without soft factors in the forward pass (straight-through) the accuracy is "
                "within 1 point.",
                f"[V] {_EARLIER}, to half",
                "98.2 and 98.5 %",
                lambda r: _line(r, "recommended accuracy", "straight-through accuracy"),
                lambda r: (
                    abs(r.difference("recommended accuracy", "straight-through accuracy")) <= 0.01
                ),
                scales=("cpu",),
            ),
        ),
    )
)
