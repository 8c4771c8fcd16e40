"""Tasks: data, what is minimised and measured on it, and the model that a recipe gets by default.

The tasks that a recipe can name are a module each, ``latewood.tasks.digits`` and so on. A task of
one's own is a function that returns a ``Task``.
"""

from __future__ import annotations

from latewood.tasks.data.datasets import (
    Batch,
    Dataset,
    Normalise,
    TensorDataset,
    batch_count,
    batch_stream,
    batches,
    epoch_order,
    stratified_prefix,
)
from latewood.tasks.objectives import (
    Classification,
    Diffusion,
    LanguageModelling,
    LastPosition,
    Objective,
)
from latewood.tasks.task import Augmentation, Task

__all__ = [
    "Augmentation",
    "Batch",
    "Classification",
    "Dataset",
    "Diffusion",
    "LanguageModelling",
    "LastPosition",
    "Normalise",
    "Objective",
    "Task",
    "TensorDataset",
    "batch_count",
    "batch_stream",
    "batches",
    "epoch_order",
    "stratified_prefix",
]
