"""Learned sparsity: which weights a network can do without, found while it trains."""

from latewood.core.masks import keep_largest, shuffled_masks
from latewood.sparsity.continuous_sparsification import ContinuousSparsification
from latewood.sparsity.fixed_masks import FixedMasks
from latewood.sparsity.mask_evaluations import MaskEvaluations, evaluate_masks
from latewood.sparsity.maskable_weights import maskable
from latewood.sparsity.pruning import (
    GradualMagnitudePruning,
    prune_smallest,
    random_masks,
)
from latewood.sparsity.structured import StructuredSparsification
from latewood.sparsity.tickets import Ticket, restore, snapshot

__all__ = [
    "ContinuousSparsification",
    "FixedMasks",
    "GradualMagnitudePruning",
    "MaskEvaluations",
    "StructuredSparsification",
    "Ticket",
    "keep_largest",
    "maskable",
    "prune_smallest",
    "random_masks",
    "evaluate_masks",
    "restore",
    "shuffled_masks",
    "snapshot",
]
