"""Structured continuous sparsification: networks that grow from a seed and prune themselves."""

from latewood.sparsity.structured.structured_sparsification import StructuredSparsification

__all__ = ["StructuredSparsification"]
