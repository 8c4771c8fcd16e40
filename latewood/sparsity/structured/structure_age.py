"""The age of each structure, and the temperature that comes of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from latewood.sparsity.structured.gates import Gate
from latewood.sparsity.structured.logit_dynamics import temperatures

__all__ = ["StructureAges"]


class StructureAges:
    """How many epochs each structure has been there for.

    Args:
        gates: of all kinds of structures.
        ratio: (gamma) growth of the temperature in an epoch.
        shared: all structures take the temperature of the run's epoch instead.
    """

    def __init__(self, gates: Sequence[Gate], *, ratio: float, shared: bool) -> None:
        self._gates, self._ratio, self._shared = gates, ratio, shared
        self.epochs = [torch.zeros(len(gate.logits), dtype=torch.int64) for gate in gates]
        """For each gate the ages of its structures, int64 (structures,)."""

    def advance(self, gate: int, present: Tensor) -> None:
        """The structures of a gate that are there grow older by one epoch."""
        self.epochs[gate] += present

    def restore(self, epochs: Sequence[Tensor]) -> None:
        """Sets all ages."""
        self.epochs = [ages.clone() for ages in epochs]

    def set_temperatures(self, epoch: int) -> None:
        """Gives every gate the temperatures of its ages, or those of this epoch if it is shared."""
        for gate, epochs in zip(self._gates, self.epochs, strict=True):
            ages = torch.full_like(epochs, max(epoch, 0)) if self._shared else epochs
            gate.temperature.copy_(temperatures(ages, self._ratio))
