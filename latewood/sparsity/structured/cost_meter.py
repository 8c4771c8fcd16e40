"""What a network takes now, and what its training has taken."""

from __future__ import annotations

from latewood.sparsity.structured.budget import Budget
from latewood.sparsity.structured.live_structure import LiveStructure
from latewood.sparsity.structured.running_cost import Cost

__all__ = ["CostMeter"]


class CostMeter:
    """Counts the multiply-accumulates of a training whose network changes between epochs.

    Args:
        macs: of a forward pass on the example.
        structure: the network.
    """

    def __init__(self, macs: Cost, structure: LiveStructure) -> None:
        self._macs, self._structure = macs, structure
        self._macs_per_step = 0.0
        self.spent = 0.0
        """Multiply-accumulates of the forward passes of all steps so far."""

    def refresh(self) -> None:
        """Notes what a step takes; called when the network has changed."""
        self._macs_per_step = self._macs.at(self._structure.widths, self._structure.blocks.tolist())

    def count_step(self) -> None:
        """Adds a step."""
        self.spent += self._macs_per_step

    def metrics(self, budget: Budget, steps: int) -> dict[str, float]:
        """Sizes now against the budget, what is there, and what so many steps have taken."""
        structure, groups = self._structure, self._structure.spec.groups
        widths, blocks = structure.widths, structure.blocks.tolist()
        full = self._macs.at([group.width for group in groups], [True] * len(blocks))
        cost = budget.cost.at(widths, blocks)
        channels = {
            f"kept/{group.name}": float(width if structure.visible(number) else 0)
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
            **channels,
        }
