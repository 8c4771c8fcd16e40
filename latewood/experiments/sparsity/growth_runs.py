"""Grow-and-prune in a setting: one training that ends with a network of the size that was asked."""

from __future__ import annotations

from typing import Any

from latewood.experiments.flop_counted_training import (
    TrainingSetting,
    build,
    fit_and_count,
)
from latewood.experiments.sparsity.train_prune_finetune import ScoreAndCost, Size, score_and_cost
from latewood.sparsity.structured import StructuredSparsification
from latewood.training.randomness import derive

__all__ = ["grow"]


def grow(
    setting: TrainingSetting,
    *,
    keep: float,
    measure: Size = "parameters",
    epochs: int,
    seed: int,
    **options: Any,
) -> ScoreAndCost:
    """Structured continuous sparsification to a budget.

    Args:
        setting: the training.
        keep: the budget, as a share of the full network's size, in (0, 1].
        measure: of the size.
        epochs: length of the training.
        seed: of the training and of the structures that are sampled.
        options: of ``StructuredSparsification``.
    """
    model = build(setting, seed)
    method = StructuredSparsification(
        model,
        setting.task.example_inputs,
        budget={measure: keep},
        total_steps=epochs * setting.period,
        steps_per_epoch=setting.period,
        seed=derive(seed, "structures"),
        **options,
    )
    spent = fit_and_count(setting, model, epochs=epochs, seed=seed, method=method)
    return score_and_cost(setting, method.finalize(), spent)
