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
from latewood.experiments.flop_counted_training import (
    TrainingSetting,
    build,
    dense_training_macs,
    fit_and_count,
)
from latewood.experiments.sparsity.grow_and_prune_costs import (
    GROWN_EPOCHS,
    KEPT,
    NARROW_EPOCHS,
)
from latewood.experiments.sparsity.growth_runs import grow
from latewood.experiments.sparsity.growth_tasks import images
from latewood.experiments.sparsity.train_prune_finetune import (
    ScoreAndCost,
    narrow_from_scratch,
    score_and_cost,
    size,
    train_prune_finetune,
)

EPOCHS = 60

Way = Callable[[int], ScoreAndCost]


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


def _print(setting: TrainingSetting, seeds: range) -> None:
    rows = []
    for name, way in _ways(setting).items():
        try:
            timed = [_timed(way, seed) for seed in seeds]
        except WorkError as error:
            print(f"{name}: {error}")
            continue
        rows.append([name, *_cells(setting, timed)])
    print_table(
        f"Digits, 1-32-64-64, {len(seeds)} seeds, {setting.epochs} epochs dense",
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


def _ways(setting: TrainingSetting) -> dict[str, Way]:
    ways: dict[str, Way] = {"dense": partial(_dense, setting)}
    for name, keep in KEPT.items():
        grown_for, narrow_for = (
            max(1, round(epochs["cpu"][name] * setting.epochs / EPOCHS))
            for epochs in (GROWN_EPOCHS, NARROW_EPOCHS)
        )
        options: dict[str, Any] = {"keep": keep, "measure": "macs"}

        def pruned(seed: int, options: dict[str, Any] = options) -> ScoreAndCost:
            return train_prune_finetune(setting, seed=seed, **options)

        def grown(
            seed: int, options: dict[str, Any] = options, epochs: int = grown_for
        ) -> ScoreAndCost:
            return grow(setting, epochs=epochs, seed=seed, **options)

        def narrow(
            seed: int, options: dict[str, Any] = options, epochs: int = narrow_for
        ) -> ScoreAndCost:
            return narrow_from_scratch(setting, epochs=epochs, seed=seed, **options)

        ways |= {
            f"{name}, Torch-Pruning, {setting.epochs // 2} + {setting.epochs // 2} epochs": pruned,
            f"{name}, grown, {grown_for} epochs": grown,
            f"{name}, narrow from the start, {narrow_for} epochs": narrow,
        }
    return ways


def _dense(setting: TrainingSetting, seed: int) -> ScoreAndCost:
    model = build(setting, seed)
    return score_and_cost(
        setting, model, fit_and_count(setting, model, epochs=setting.epochs, seed=seed)
    )


def _timed(way: Way, seed: int) -> tuple[ScoreAndCost, float]:
    start = time.process_time()
    result = way(seed)
    return result, time.process_time() - start


def _cells(setting: TrainingSetting, timed: list[tuple[ScoreAndCost, float]]) -> list[str]:
    results = [result for result, _ in timed]
    scores = [100 * result.score for result in results]
    full = build(setting, 0)
    spread = f" ± {stdev(scores):.2f}" if len(scores) > 1 else ""
    fractions = (
        mean(result.parameters for result in results) / size(setting, full, "parameters"),
        mean(result.macs for result in results) / size(setting, full, "macs"),
        mean(result.training_macs for result in results) / dense_training_macs(setting),
    )
    return [
        f"{mean(scores):.2f}{spread}",
        *(f"{100 * fraction:.1f}" for fraction in fractions),
        f"{mean(seconds for _, seconds in timed):.1f}",
    ]
