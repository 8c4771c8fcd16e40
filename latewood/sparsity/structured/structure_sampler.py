"""Makes the network of each epoch: the seed, the samples, and the one that stays."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer

from latewood.sparsity.structured.budget import Budget
from latewood.sparsity.structured.live_structure import LiveStructure
from latewood.sparsity.structured.logit_rates import (
    ADAPTIVE_LR,
    is_adaptive,
    logit_group,
    starting_logits,
)
from latewood.sparsity.structured.penalty_controller import PenaltyController
from latewood.sparsity.structured.saliency import saliencies
from latewood.sparsity.structured.structure_age import StructureAges
from latewood.sparsity.structured.structure_selection import capped, floored, largest_within
from latewood.sparsity.structured.structured_settings import StructuredSettings

__all__ = ["StructureSampler"]


class StructureSampler:
    """Chooses the structures of an epoch and has the model take them on.

    Args:
        structure: the network.
        ages: of the structures; those of a sample grow older.
        controller: of the penalty, which follows each network.
        settings: of the run.
        growth_steps: optimizer steps in which the penalty alone brings absent structures to 0.
        generator: the samples are drawn from it.
    """

    def __init__(
        self,
        structure: LiveStructure,
        ages: StructureAges,
        controller: PenaltyController,
        settings: StructuredSettings,
        *,
        growth_steps: float,
        generator: torch.Generator,
    ) -> None:
        self._structure, self._ages, self._controller = structure, ages, controller
        self._settings = settings
        self._growth_steps = growth_steps
        self._generator = generator

    def plant(self, optimizer: Optimizer, budget: Budget) -> bool:
        """Cuts the model down to the seed and sets the logits by the optimizer's rate.

        Args:
            optimizer: whose state follows, and whose group moves the logits.
            budget: of the run.

        Returns:
            Whether anything changed.

        Raises:
            RequestError: the optimizer lacks the logits.
        """
        structure, growth = self._structure, self._settings.growth
        present = [torch.zeros_like(channels) for channels in structure.present]
        for channels in present:
            channels[: growth.seed_width] = True
        blocks = torch.zeros_like(structure.blocks)
        changed = structure.change_to(present, blocks, optimizer, remember=False)
        self._controller.follow(budget.times(growth.overshoot), present, blocks)
        absent_channel, absent_block = self._growth_logits(optimizer)
        with torch.no_grad():
            for gate, channels in zip(structure.gates, present, strict=True):
                gate.logits.fill_(absent_channel)
                gate.logits[channels.to(gate.logits.device)] = growth.seed_logit
            if structure.layer_gate is not None:
                structure.layer_gate.logits.fill_(absent_block)
        return changed

    def sample(self, optimizer: Optimizer, budget: Budget) -> bool:
        """Draws the structures of an epoch; those drawn grow older.

        Args:
            optimizer: whose state follows.
            budget: of the run.

        Returns:
            Whether anything changed.
        """
        structure, growth = self._structure, self._settings.growth
        limited = budget.times(growth.overshoot)
        draws = [
            torch.rand(len(gate.logits), generator=self._generator, dtype=torch.float64)
            < gate.chances().detach().cpu().double()
            for gate in structure.all_gates
        ]
        blocks = draws.pop() if structure.layer_gate is not None else structure.blocks
        scores, block_scores = self._logits()
        present = [floored(drawn, score) for drawn, score in zip(draws, scores, strict=True)]
        # The penalty follows the sample as drawn: behind the cap it would never be too large.
        self._controller.follow(limited, present, blocks)
        if growth.capped:
            present, blocks = capped(
                present, scores, blocks, block_scores, limited.cost, limited.limit
            )
        changed = structure.change_to(present, blocks, optimizer)
        for group, channels in enumerate(structure.present):
            if structure.visible(group):
                self._ages.advance(group, channels)
        if structure.layer_gate is not None:
            self._ages.advance(-1, blocks)
        return changed

    def freeze(self, optimizer: Optimizer | None, budget: Budget) -> None:
        """Fixes the structures of the largest scores within the budget; folds the factors.

        Args:
            optimizer: whose state follows.
            budget: of the run.
        """
        structure, freeze = self._structure, self._settings.freeze
        scores, block_scores = self._logits()
        if freeze.ranking == "norms":
            scores = saliencies(structure.spec, structure.gates, structure.present)
        present, blocks = largest_within(
            scores, block_scores, budget.cost, budget.limit, floor=freeze.floor
        )
        # What is detached now is forgotten with the factors.
        structure.change_to(present, blocks, optimizer, remember=False)
        structure.fold(optimizer)
        for gate in structure.all_gates:
            gate.logits.grad = None

    def _logits(self) -> tuple[list[Tensor], Tensor]:
        """The logits on the CPU: of each group's channels, and of the blocks."""
        layer_gate = self._structure.layer_gate
        channels = [gate.logits.detach().cpu() for gate in self._structure.gates]
        return channels, torch.zeros(0) if layer_gate is None else layer_gate.logits.detach().cpu()

    def _growth_logits(self, optimizer: Optimizer) -> tuple[float, ...]:
        """Where absent channels and blocks start; sets a learning rate that is left to us."""
        group = logit_group(optimizer, self._structure.gates[0].logits)
        if self._settings.logits.logit_lr is None and is_adaptive(group):
            group["lr"] = group["initial_lr"] = ADAPTIVE_LR
        growth = self._settings.growth
        if growth.growth_logit is not None:
            return growth.growth_logit, growth.growth_logit
        return starting_logits(group, self._controller.weights, self._growth_steps)
