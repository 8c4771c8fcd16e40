"""Labels that say nothing about their inputs, for all samples or for a share of them."""

from __future__ import annotations

import torch

from latewood.errors import invalid
from latewood.tasks.data.datasets import TensorDataset

__all__ = ["permute_labels"]


def permute_labels(
    train: TensorDataset, validation: TensorDataset, *, fraction: float, seed: int = 12345
) -> tuple[TensorDataset, TensorDataset]:
    """Permutes the labels of a fraction of the samples of both parts among themselves.

    Which ones, and how, depends on the seed alone, so every run learns the same wrong labels, and
    the number of samples of each class stays. With a fraction of 1 labels are random: what is
    learned of them is learned by heart, and the validation error stays that of guessing.

    Args:
        train: its last tensor holds the labels.
        validation: likewise.
        fraction: of the samples, in [0, 1]; 0 returns both parts as they are.
        seed: of the choice of samples and of their permutation.

    Returns:
        both parts with the labels in question permuted over both of them.

    Raises:
        RequestError: a fraction outside [0, 1], or a seed that is negative.

    Source: arXiv 2408.11804, random labels (fraction 1), seed and one permutation of all labels as
        in its released code.
    """
    if not 0 <= fraction <= 1:
        raise invalid("label_noise", fraction, "a share, 0 to 1")
    if seed < 0:
        raise invalid("label_seed", seed, "0 or more")
    if fraction == 0:
        return train, validation
    labels = torch.cat((train.tensors[-1], validation.tensors[-1]))
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(labels), generator=generator)[: round(fraction * len(labels))]
    order = torch.randperm(len(chosen), generator=generator)
    mixed = labels.clone()
    mixed[chosen] = labels[chosen[order]]
    first, second = mixed.split([len(train), len(validation)])
    return _with_labels(train, first), _with_labels(validation, second)


def _with_labels(part: TensorDataset, labels: torch.Tensor) -> TensorDataset:
    return TensorDataset(*part.tensors[:-1], labels, transform=part.transform)
