"""The penalty that grows a network below its budget and prunes it above."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from latewood.sparsity.structured.budget import Budget
from latewood.sparsity.structured.live_structure import LiveStructure
from latewood.sparsity.structured.logit_dynamics import penalty_weight
from latewood.sparsity.structured.structured_settings import PenaltySettings

__all__ = ["PenaltyController"]


class PenaltyController:
    """Weighs the penalty on the logits by how far a sampled network is from the budget.

    Args:
        settings: its strength.
    """

    def __init__(self, settings: PenaltySettings) -> None:
        self._settings = settings
        self.weights = (0.0, 0.0)
        """(lambda1, lambda2) of channels and of blocks, negative while the network is too small."""

    def follow(self, budget: Budget, present: Sequence[Tensor], blocks: Tensor) -> None:
        """Sets the weights by a network.

        Args:
            budget: that it shall meet.
            present: its channels in each group, bool (width,).
            blocks: its blocks, bool.
        """
        widths = [int(channels.sum()) for channels in present]
        sparsity = 1.0 - budget.cost.at(widths, blocks.tolist()) / budget.full
        wanted = 1.0 - budget.limit / budget.full

        def weight(base: float) -> float:
            return penalty_weight(
                base, sparsity=sparsity, wanted=wanted, normalised=self._settings.normalised
            )

        self.weights = weight(self._settings.penalty), weight(self._settings.block_penalty)

    def penalty(self, structure: LiveStructure) -> Tensor:
        """``lambda1 sum sigmoid(beta s)`` over channels, and with lambda2 over blocks.

        Channels inside an absent block feel none.

        Args:
            structure: the network as it is now.

        Returns:
            0-dim tensor, differentiable in the logits; 0 once the factors are folded.
        """
        total = structure.gates[0].logits.new_zeros(())
        if structure.folded:
            return total
        for number, gate in enumerate(structure.gates):
            if structure.visible(number):
                total = total + self.weights[0] * gate.chances().sum()
        if structure.layer_gate is not None:
            total = total + self.weights[1] * structure.layer_gate.chances().sum()
        return total
