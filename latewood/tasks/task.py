"""A task: what is learned from which data, how it is scored, and which model fits it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from latewood.tasks.data.datasets import Batch, Dataset
from latewood.tasks.objectives import Objective

__all__ = ["Augmentation", "Task"]

Augmentation = Callable[[Batch, torch.Generator], Batch]
"""Changes a gathered training batch at random; all randomness comes from the generator."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """Everything about a problem but the model and how it is trained.

    Args:
        name: short name, as a recipe gives it.
        train: samples to learn from.
        validation: samples to score on; never augmented.
        objective: the loss, and what else is measured.
        headline: the measure that runs are compared by, a key of the objective's scores.
        higher_is_better: whether more of the headline is better.
        model: name of the model that a recipe without one gets.
        model_arguments: what the data fixes about a model (classes, channels, ...); a model gets
            those that its signature names.
        example_inputs: inputs of one sample (batch dimension 1), to count and time a model with.
        augment: applied to training batches.
    """

    name: str
    train: Dataset
    validation: Dataset
    objective: Objective
    headline: str
    higher_is_better: bool = True
    model: str
    model_arguments: Mapping[str, object] = field(default_factory=dict)
    example_inputs: tuple[Tensor, ...]
    augment: Augmentation | None = None
