"""Grow-and-prune on a course: one training that ends with a network of the size that was asked."""

from __future__ import annotations

from typing import Any

from latewood.experiments.sparsity.flop_counted_training import Course, build, fit
from latewood.experiments.sparsity.train_prune_finetune import Outcome, Size, outcome
from latewood.sparsity.structured import StructuredSparsification
from latewood.training.randomness import derive

__all__ = ["grow"]


def grow(
    course: Course,
    *,
    keep: float,
    measure: Size = "parameters",
    epochs: int,
    seed: int,
    **options: Any,
) -> Outcome:
    """Structured continuous sparsification to a budget.

    Args:
        course: the training.
        keep: the budget, as a share of the full network's size, in (0, 1].
        measure: of the size.
        epochs: length of the training.
        seed: of the training and of the structures that are sampled.
        options: of ``StructuredSparsification``.
    """
    model = build(course, seed)
    method = StructuredSparsification(
        model,
        course.task.example_inputs,
        budget={measure: keep},
        total_steps=epochs * course.period,
        steps_per_epoch=course.period,
        seed=derive(seed, "structures"),
        **options,
    )
    spent = fit(course, model, epochs=epochs, seed=seed, method=method)
    return outcome(course, method.finalize(), spent)
