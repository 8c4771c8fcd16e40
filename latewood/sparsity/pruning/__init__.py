"""Ways to choose which weights to remove that do not learn it; each gives binary masks."""

from latewood.sparsity.pruning.gradual import GradualMagnitudePruning
from latewood.sparsity.pruning.magnitude import keep_largest, prune_smallest
from latewood.sparsity.pruning.random import random_masks, shuffled_masks

__all__ = [
    "GradualMagnitudePruning",
    "keep_largest",
    "prune_smallest",
    "random_masks",
    "shuffled_masks",
]
