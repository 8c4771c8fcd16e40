"""One clock for each structure, and the temperature that it shows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from latewood.sparsity.structured.gates import Gate
from latewood.sparsity.structured.logit_dynamics import temperatures

__all__ = ["Clocks"]


class Clocks:
    """How many epochs each structure has been there for.

    Args:
        gates: of all kinds of structures.
        ratio: (gamma) growth of the temperature in an epoch.
        shared: all structures follow the epochs of the run instead.
    """

    def __init__(self, gates: Sequence[Gate], *, ratio: float, shared: bool) -> None:
        self._gates, self._ratio, self._shared = gates, ratio, shared
        self.ages = [torch.zeros(len(gate.logits), dtype=torch.int64) for gate in gates]

    def advance(self, gate: int, present: Tensor) -> None:
        """The structures of a gate that are there grow older by one epoch."""
        self.ages[gate] += present

    def restore(self, ages: Sequence[Tensor]) -> None:
        """Sets all clocks."""
        self.ages = [each.clone() for each in ages]

    def show(self, epoch: int) -> None:
        """Gives every gate the temperatures of its clocks, or of this epoch if they are shared."""
        for gate, ages in zip(self._gates, self.ages, strict=True):
            ages = torch.full_like(ages, max(epoch, 0)) if self._shared else ages
            gate.temperature.copy_(temperatures(ages, self._ratio))
