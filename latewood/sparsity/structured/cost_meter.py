"""What a network takes now, and what its training has taken."""

from __future__ import annotations

from latewood.sparsity.structured.budget import Budget
from latewood.sparsity.structured.costs import Cost
from latewood.sparsity.structured.live_structure import Anatomy

__all__ = ["Meter"]


class Meter:
    """Counts the multiply-accumulates of a training whose network changes between epochs.

    Args:
        macs: of a forward pass on the example.
        anatomy: the network.
    """

    def __init__(self, macs: Cost, anatomy: Anatomy) -> None:
        self._macs, self._anatomy = macs, anatomy
        self._now = 0.0
        self.spent = 0.0
        """Multiply-accumulates of the forward passes of all steps so far."""

    def look(self) -> None:
        """Notes what a step takes; called when the network has changed."""
        self._now = self._macs.at(self._anatomy.widths, self._anatomy.blocks.tolist())

    def count(self) -> None:
        """Adds a step."""
        self.spent += self._now

    def metrics(self, budget: Budget, steps: int) -> dict[str, float]:
        """Sizes now against the budget, what is there, and what so many steps have taken."""
        anatomy, groups = self._anatomy, self._anatomy.skeleton.groups
        widths, blocks = anatomy.widths, anatomy.blocks.tolist()
        full = self._macs.at([group.width for group in groups], [True] * len(blocks))
        cost = budget.cost.at(widths, blocks)
        kept = {
            f"kept/{group.name}": float(width if anatomy.visible(number) else 0)
            for number, (group, width) in enumerate(zip(groups, widths, strict=True))
        }
        return {
            "budget/used": cost / budget.limit,
            "budget/share": cost / budget.full,
            "parameters": budget.parameters.at(widths, blocks),
            "macs": self._macs.at(widths, blocks),
            "training/macs": self.spent,
            "training/share": self.spent / (max(steps, 1) * full),
            **({"layers": float(sum(blocks))} if blocks else {}),
            **kept,
        }
