"""Addition modulo a prime, learned from a part of the table: the task on which networks grok."""

from __future__ import annotations

import random

import torch

from latewood.errors import invalid
from latewood.tasks.data.datasets import TensorDataset
from latewood.tasks.objectives import LastPosition
from latewood.tasks.task import Task

__all__ = ["modular_addition"]


def modular_addition(*, p: int = 113, fraction: float = 0.3, seed: int = 0) -> Task:
    """Sequences (i, j, "=") whose last position must say (i + j) mod p.

    All p^2 pairs are shuffled; the first int(fraction p^2) are learned from, the others scored
    on. Tokens are the numbers 0 to p - 1 and "=" as p.

    Args:
        p: modulus, 2 or more.
        fraction: share of the pairs to learn from.
        seed: seed of the shuffle (Python's ``random``).

    Returns:
        task with int64 tokens (n, 3) and labels (n,).

    Raises:
        RequestError: a modulus below 2, or a fraction that leaves one of the parts empty.

    Source: arXiv 2408.11804, grokking.
    """
    if p < 2:
        raise invalid("p", p, "2 or more")
    pairs = [(i, j) for i in range(p) for j in range(p)]
    random.Random(seed).shuffle(pairs)
    train_size = int(fraction * p * p)
    if not 0 < train_size < len(pairs):
        raise invalid("fraction", fraction, f"between 0 and 1, with 1 to {p * p - 1} pairs kept")
    table = torch.tensor(pairs)
    tokens = torch.cat((table, torch.full((len(table), 1), p)), dim=1)
    labels = table.sum(dim=1) % p
    return Task(
        name="modular_addition",
        train=TensorDataset(tokens[:train_size], labels[:train_size]),
        validation=TensorDataset(tokens[train_size:], labels[train_size:]),
        objective=LastPosition(),
        headline="accuracy",
        model="grokking_transformer",
        model_arguments={"vocabulary": p + 1, "num_classes": p + 1, "context": 3},
        example_inputs=(torch.zeros(1, 3, dtype=torch.int64),),
    )
