"""Learned sparsity: which weights a network can do without, found while it trains."""

from latewood.sparsity.continuous import ContinuousSparsification

__all__ = ["ContinuousSparsification"]
