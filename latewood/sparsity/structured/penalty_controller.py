"""The penalty that grows a network below its budget and prunes it above."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from latewood.sparsity.structured.budget import Budget
from latewood.sparsity.structured.live_structure import Anatomy
from latewood.sparsity.structured.logit_dynamics import penalty_weight

__all__ = ["Controller"]


class Controller:
    """Weighs the penalty on the logits by how far a sampled network is from the budget.

    Args:
        bases: (lambda_base) of channels and of blocks.
        normalised: divide by the budget's share.
    """

    def __init__(self, bases: tuple[float, float], *, normalised: bool) -> None:
        self._bases, self._normalised = bases, normalised
        self.weights = (0.0, 0.0)
        """(lambda1, lambda2) of channels and of blocks, negative while the network is too small."""

    def follow(self, budget: Budget, present: Sequence[Tensor], blocks: Tensor) -> None:
        """Sets the weights by a network.

        Args:
            budget: that it shall meet.
            present: its channels in each group, bool (width,).
            blocks: its blocks, bool.
        """
        share = budget.cost.at([int(each.sum()) for each in present], blocks.tolist())
        first, second = (
            penalty_weight(
                base,
                sparsity=1.0 - share / budget.full,
                wanted=1.0 - budget.limit / budget.full,
                normalised=self._normalised,
            )
            for base in self._bases
        )
        self.weights = (first, second)

    def penalty(self, anatomy: Anatomy) -> Tensor:
        """``lambda1 sum sigmoid(beta s)`` over channels, and with lambda2 over blocks.

        Channels inside an absent block feel none.

        Args:
            anatomy: the network as it is now.

        Returns:
            0-dim tensor, differentiable in the logits; 0 once the factors are folded.
        """
        total = anatomy.gates[0].logits.new_zeros(())
        if anatomy.folded:
            return total
        for number, gate in enumerate(anatomy.gates):
            if anatomy.visible(number):
                total = total + self.weights[0] * gate.chances().sum()
        if anatomy.layer_gate is not None:
            total = total + self.weights[1] * anatomy.layer_gate.chances().sum()
        return total
