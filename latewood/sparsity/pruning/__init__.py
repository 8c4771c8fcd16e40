"""Ways to choose which weights to remove that do not learn it; each gives binary masks."""

from latewood.sparsity.pruning.gradual import GradualMagnitudePruning
from latewood.sparsity.pruning.magnitude import prune_smallest
from latewood.sparsity.pruning.random import random_masks

__all__ = [
    "GradualMagnitudePruning",
    "prune_smallest",
    "random_masks",
]
