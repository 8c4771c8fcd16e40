"""Growing to a budget against train, prune, fine-tune by Torch-Pruning: accuracy for the cost."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import mean, stdev
from typing import Any

import torch

from benchmarks._timing import print_table
from latewood.errors import WorkError
from latewood.experiments.sparsity.flop_counted_training import (
    Course,
    build,
    dense_training_macs,
    fit,
)
from latewood.experiments.sparsity.grow_and_prune_costs import (
    GROWN_EPOCHS,
    KEPT,
    NARROW_EPOCHS,
)
from latewood.experiments.sparsity.growth_runs import grow
from latewood.experiments.sparsity.growth_tasks import images
from latewood.experiments.sparsity.train_prune_finetune import (
    Outcome,
    narrow_from_scratch,
    outcome,
    size,
    train_prune_finetune,
)

EPOCHS = 60

Way = Callable[[int], Outcome]


def main(arguments: list[str]) -> None:
    """Prints one table; seconds are processor time of one thread, training and pruning together.

    Args:
        arguments: the number of seeds, 3 if left out; then the epochs of the dense training, 60 if
            left out, to which those of growing are in proportion.
    """
    seeds = range(int(arguments[0]) if arguments else 3)
    epochs = int(arguments[1]) if len(arguments) > 1 else EPOCHS
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        _print(images(epochs=epochs), seeds)
    finally:
        torch.set_num_threads(before)


def _print(course: Course, seeds: range) -> None:
    rows = []
    for name, way in _ways(course).items():
        try:
            timed = [_timed(way, seed) for seed in seeds]
        except WorkError as error:
            print(f"{name}: {error}")
            continue
        rows.append([name, *_cells(course, timed)])
    print_table(
        f"Digits, 1-32-64-64, {len(seeds)} seeds, {course.epochs} epochs dense",
        [
            "network",
            "accuracy %",
            "parameters %",
            "MACs %",
            "training MACs, % of dense",
            "seconds",
        ],
        rows,
    )


def _ways(course: Course) -> dict[str, Way]:
    ways: dict[str, Way] = {"dense": partial(_dense, course)}
    for name, keep in KEPT.items():
        grown_for, narrow_for = (
            max(1, round(table["cpu"][name] * course.epochs / EPOCHS))
            for table in (GROWN_EPOCHS, NARROW_EPOCHS)
        )
        options: dict[str, Any] = {"keep": keep, "measure": "macs"}

        def pruned(seed: int, options: dict[str, Any] = options) -> Outcome:
            return train_prune_finetune(course, seed=seed, **options)

        def grown(seed: int, options: dict[str, Any] = options, epochs: int = grown_for) -> Outcome:
            return grow(course, epochs=epochs, seed=seed, **options)

        def narrow(
            seed: int, options: dict[str, Any] = options, epochs: int = narrow_for
        ) -> Outcome:
            return narrow_from_scratch(course, epochs=epochs, seed=seed, **options)

        ways |= {
            f"{name}, Torch-Pruning, {course.epochs // 2} + {course.epochs // 2} epochs": pruned,
            f"{name}, grown, {grown_for} epochs": grown,
            f"{name}, narrow from the start, {narrow_for} epochs": narrow,
        }
    return ways


def _dense(course: Course, seed: int) -> Outcome:
    model = build(course, seed)
    return outcome(course, model, fit(course, model, epochs=course.epochs, seed=seed))


def _timed(way: Way, seed: int) -> tuple[Outcome, float]:
    start = time.process_time()
    result = way(seed)
    return result, time.process_time() - start


def _cells(course: Course, timed: list[tuple[Outcome, float]]) -> list[str]:
    runs = [run for run, _ in timed]
    full = build(course, 0)
    spread = f" ± {100 * stdev(run.score for run in runs):.2f}" if len(runs) > 1 else ""
    fractions = (
        mean(run.parameters for run in runs) / size(course, full, "parameters"),
        mean(run.macs for run in runs) / size(course, full, "macs"),
        mean(run.training_macs for run in runs) / dense_training_macs(course),
    )
    return [
        f"{100 * mean(run.score for run in runs):.2f}{spread}",
        *(f"{100 * fraction:.1f}" for fraction in fractions),
        f"{mean(seconds for _, seconds in timed):.1f}",
    ]
