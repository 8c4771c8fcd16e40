"""Masks that are given, not learned: pruned weights are exactly 0 for as long as they are on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from latewood.core import MASK, EndsOnce, Selected
from latewood.core.attached_masks import AttachedMasks
from latewood.core.masks import Masks, require_masks
from latewood.errors import invalid
from latewood.sparsity.binary_mask import BinaryMask
from latewood.sparsity.maskable_weights import maskable

__all__ = ["FixedMasks"]


class FixedMasks(EndsOnce):
    """A method that trains a network under given masks.

    The masks multiply in every forward pass. Momentum, weight decay, AdamW or an average of the
    weights (``torch.optim.swa_utils``) move only stored values that no output sees, and
    ``finalize`` sets those to 0.

    Args:
        model: its weights named in ``masks`` are masked in place.
        masks: parameter name -> bool tensor, True where kept.
        scale: factor of what is kept, one for all or by parameter name.

    Raises:
        RequestError: no mask, a name that the model does not have, a mask of another shape or
            dtype, a mask without a scale, or a weight that already has a mask.
    """

    order = MASK

    def __init__(
        self,
        model: nn.Module,
        masks: Mapping[str, Tensor],
        *,
        scale: float | Mapping[str, float] = 1.0,
    ) -> None:
        self._model = model
        if not isinstance(masks, Mapping) or not masks:
            shown = masks if isinstance(masks, Mapping) else type(masks).__name__
            raise invalid("masks", shown, "a mapping with the mask of at least one weight")
        chosen = {
            weight.name: weight for weight in maskable(model, include=tuple(masks), exclude=())
        }
        require_masks(masks, {name: weight.stored for name, weight in chosen.items()})
        if isinstance(scale, Mapping) and (missing := sorted(masks.keys() - scale.keys())):
            raise invalid("scale", sorted(scale), f"also factors for {', '.join(missing)}")

        def make(weight: Selected) -> BinaryMask:
            factor = scale[weight.name] if isinstance(scale, Mapping) else scale
            return BinaryMask(masks[weight.name].to(weight.stored.device), scale=factor)

        self._attached = AttachedMasks(model, chosen.values(), make)

    def masks(self) -> Masks:
        """The masks by parameter name: bool, shape of the weight, True where kept."""
        return self._attached.read(lambda mask: mask.kept.clone())

    def parameter_groups(self) -> list[dict[str, Any]]:
        """None: nothing is learned beside the weights.

        Raises:
            RequestError: after ``finalize``.
        """
        self.require_active("parameter_groups")
        return []

    def penalty(self) -> Tensor:
        """0, a 0-dim tensor.

        Raises:
            RequestError: after ``finalize``.
        """
        self.require_active("penalty")
        return torch.zeros(())

    def step(self) -> None:
        """Does nothing: the masks stay.

        Raises:
            RequestError: after ``finalize``.
        """
        self.require_active("step")

    def finalize(self) -> nn.Module:
        """Folds the masks into the weights, which then hold exact zeros, and removes them.

        Returns:
            The model with plain weights.

        Raises:
            RequestError: a second call, or a number format inside the masks is not baked yet.
        """
        self.require_active("finalize")
        self._attached.fold()
        self.finalized = True
        return self._model

    def metrics(self) -> dict[str, float]:
        """ "density" (fraction kept of all masked weights) and "density/<layer>"."""
        density, by_layer = self._attached.fractions(lambda mask: mask.kept)
        return {
            "density": density,
            **{f"density/{layer}": fraction for layer, fraction in by_layer.items()},
        }

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the masks are in the model's own state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes what ``state_dict`` returned.

        Raises:
            RequestError: a state of another kind, or after ``finalize``.
        """
        self.require_active("load_state_dict")
        if state:
            raise invalid("state", state, "what FixedMasks.state_dict() returned, {}")
