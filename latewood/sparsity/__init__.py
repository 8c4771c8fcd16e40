"""Learned sparsity: which weights a network can do without, found while it trains."""

from latewood.sparsity.continuous import ContinuousSparsification
from latewood.sparsity.fixed import FixedMasks
from latewood.sparsity.tickets import Ticket, restore, snapshot

__all__ = ["ContinuousSparsification", "FixedMasks", "Ticket", "restore", "snapshot"]
