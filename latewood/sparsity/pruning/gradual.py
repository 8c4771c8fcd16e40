"""Gradual magnitude pruning: the smallest weights go little by little while a network trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from latewood.core import Epochs, StepsPerEpoch, cubic
from latewood.core.masks import keep_largest
from latewood.errors import invalid
from latewood.sparsity.fixed_masks import FixedMasks
from latewood.sparsity.maskable_weights import maskable

__all__ = ["GradualMagnitudePruning"]


class GradualMagnitudePruning(FixedMasks):
    """Prunes to a density while training, along a cubic ramp.

    ``density(p) = d + (1 - d) (1 - q)^3``, ``q = (p - begin) / (end - begin)`` held to [0, 1], with
    p the fraction of the run. Every so many steps the smallest weights by |w|, over all layers
    together, are removed until round(density * n) are left; what is removed stays so.

    Args:
        model: its selected weights are masked in place.
        total_steps: optimizer steps of the run.
        steps_per_epoch: length of all epochs, or of each, whose ends are the default of ``every``;
            p then counts samples.
        density: (d) fraction of the masked weights kept at the end, in (0, 1].
        begin: fraction of the run at which pruning begins, in [0, 1).
        end: fraction of the run at which ``density`` is reached, above ``begin``, at most 1.
        every: steps between two prunings; None is an epoch, or 1 if that is not known. The first
            step at or after ``end`` prunes too, so that the density is met.
        include: patterns on layer or parameter names (``core.select_parameters``).
        exclude: patterns of the same form; None keeps the last layer dense, as in
            ``ContinuousSparsification``.

    Raises:
        RequestError: an argument out of range, or weights that cannot be masked.

    Source: Zhu and Gupta, To prune or not to prune (arXiv 1710.01878), equation 1.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        total_steps: int,
        steps_per_epoch: StepsPerEpoch | None = None,
        density: float = 0.1,
        begin: float = 0.05,
        end: float = 0.65,
        every: int | None = None,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] | None = None,
    ) -> None:
        lengths = 1 if steps_per_epoch is None else steps_per_epoch
        epochs = Epochs(lengths, total_steps)
        if not 0.0 < density <= 1.0:
            raise invalid("density", density, "a number in (0, 1]")
        if not 0.0 <= begin < end <= 1.0:
            raise invalid("begin, end", (begin, end), "0 <= begin < end <= 1")
        if every is not None and every < 1:
            raise invalid("every", every, "1 or more steps")
        chosen = maskable(model, include, exclude)
        everything = {
            weight.name: torch.ones_like(weight.stored, dtype=torch.bool) for weight in chosen
        }
        super().__init__(model, everything)
        self.total_steps = total_steps
        self.density = density
        self.begin = begin
        self.end = end
        self.every = lengths if every is None else every
        self._size = sum(mask.numel() for mask in everything.values())
        self._ramp = cubic(1.0, density)
        self._epochs, self._prunings = epochs, Epochs(self.every)
        self._step = 0

    def step(self) -> None:
        """Prunes when it is due; called once after every ``optimizer.step()``.

        Raises:
            RequestError: after ``finalize``.
        """
        self.require_active("step")
        self._step += 1
        at = self._epochs.progress
        last = at(self._step - 1) < self.end <= at(self._step)
        if self._prunings.begins(self._step) or last:
            self._prune_to(self.target(self._step))

    def target(self, step: int) -> float:
        """The density that the ramp asks for after ``step`` steps."""
        reached = (self._epochs.progress(step) - self.begin) / (self.end - self.begin)
        return self._ramp(min(1.0, max(0.0, reached)))

    def state_dict(self) -> dict[str, Any]:
        """The step; the masks are in the model's own state."""
        return {"step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes what ``state_dict`` returned.

        Raises:
            RequestError: a state of another kind, or after ``finalize``.
        """
        self.require_active("load_state_dict")
        if set(state) != {"step"} or not isinstance(state["step"], int) or state["step"] < 0:
            raise invalid("state", state, "what GradualMagnitudePruning.state_dict() returned")
        self._step = state["step"]

    def _prune_to(self, density: float) -> None:
        present = self.masks()
        left = sum(int(mask.sum()) for mask in present.values())
        count = min(left, round(density * self._size))
        if count == left:
            return
        weights = self._attached.weights()
        for name, mask in keep_largest(weights, count, present=present).items():
            self._attached.masks[name].kept.copy_(mask)
