"""Handwritten digits of 8x8 pixels that ship with scikit-learn: needs no files and no network."""

from __future__ import annotations

import torch

from latewood.tasks.data.datasets import TensorDataset
from latewood.tasks.data.label_noise import permute_labels
from latewood.tasks.objectives import Classification
from latewood.tasks.task import Task

__all__ = ["digits"]


def digits(
    *, label_smoothing: float = 0.0, label_noise: float = 0.0, label_seed: int = 12345
) -> Task:
    """Classification of 1,797 digits: 1,257 to train, 540 to validate, in fixed proportions.

    Pixels are divided by 16, then standardised with one mean and one deviation of the training
    part.

    Args:
        label_smoothing: share of the target spread evenly over the classes, in training only.
        label_noise: share of the samples, of both parts, whose labels are permuted among
            themselves; 1 makes all labels random.
        label_seed: seed of that permutation.

    Returns:
        task with inputs (n, 1, 8, 8) and int64 labels (n,).

    Raises:
        RequestError: a number out of range.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bundled = load_digits()
    parts = train_test_split(
        bundled.images / 16, bundled.target, test_size=0.3, random_state=0, stratify=bundled.target
    )
    pixels, held_out, labels, held_out_labels = map(torch.from_numpy, parts)
    mean, std = pixels.mean(), pixels.std(correction=0)
    train = TensorDataset(((pixels - mean) / std).float().unsqueeze(1), labels.long())
    validation = TensorDataset(
        ((held_out - mean) / std).float().unsqueeze(1), held_out_labels.long()
    )
    train, validation = permute_labels(train, validation, fraction=label_noise, seed=label_seed)
    return Task(
        name="digits",
        train=train,
        validation=validation,
        objective=Classification(label_smoothing=label_smoothing),
        headline="accuracy",
        model="convnet",
        model_arguments={
            "num_classes": 10,
            "in_channels": 1,
            "image_size": 8,
            "in_features": 64,
        },
        example_inputs=(torch.zeros(1, 1, 8, 8),),
    )
