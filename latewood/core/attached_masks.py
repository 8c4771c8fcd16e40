"""Masks on the weights of a model: put on every use of a weight, read by layer, folded back in."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from torch import Tensor, nn

from latewood.core.masks import marked_fractions
from latewood.core.parameter_uses import parameter_uses
from latewood.core.selection import Selected
from latewood.core.transforms import attach, bake, detach, require_bakeable

__all__ = ["AttachedMasks"]

Mask = TypeVar("Mask", bound=nn.Module)


class AttachedMasks(Generic[Mask]):
    """The masks of one method by parameter name, in the model's order.

    Args:
        model: whose weights are masked in place.
        chosen: the weights, each free for a mask; a tied one is masked in all its uses.
        make: the mask of a weight, a transformation of order MASK.
    """

    def __init__(
        self, model: nn.Module, chosen: Iterable[Selected], make: Callable[[Selected], Mask]
    ) -> None:
        uses = parameter_uses(model)
        self.masks: dict[str, Mask] = {}
        self._layers: dict[str, str] = {}
        self._uses: dict[str, list[Selected]] = {}
        for weight in chosen:
            self._uses[weight.name] = uses[id(weight.stored)]
            self._layers[weight.name] = weight.layer
            self.masks[weight.name] = mask = make(weight)
            for use in self._uses[weight.name]:
                attach(use.module, use.parameter_name, mask)

    def weights(self) -> dict[str, Tensor]:
        """The stored weights without their masks, detached."""
        return {name: uses[0].stored.detach() for name, uses in self._uses.items()}

    def read(self, function: Callable[[Mask], Tensor]) -> dict[str, Tensor]:
        """What a function reads from each mask."""
        return {name: function(mask) for name, mask in self.masks.items()}

    def fractions(self, function: Callable[[Mask], Tensor]) -> tuple[float, dict[str, float]]:
        """The fraction of entries that a function marks True: of all, and by layer."""
        return marked_fractions(self.read(function), self._layers)

    def fold(self) -> None:
        """Folds the masks into the weights and takes them off.

        Raises:
            RequestError: one does not commute with what is inside it; nothing is changed.
        """
        for name, mask in self.masks.items():
            for use in self._uses[name]:
                require_bakeable(use.module, use.parameter_name, mask)
        for name, mask in self.masks.items():
            first, *others = self._uses[name]
            bake(first.module, first.parameter_name, mask)
            for use in others:  # they share the tensor, which is masked by now
                detach(use.module, use.parameter_name, mask)
