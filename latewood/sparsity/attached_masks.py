"""Masks on the weights of a model: put on every use of a weight, read by layer, folded back in."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from torch import Tensor, nn

from latewood.core import Selected, attach, bake
from latewood.core.transforms import require_bakeable
from latewood.sparsity.binary_mask import BinaryMask
from latewood.sparsity.density import shares
from latewood.sparsity.maskable_weights import places
from latewood.sparsity.soft_mask import SoftMask

__all__ = ["AttachedMasks"]

M = TypeVar("M", BinaryMask, SoftMask)


class AttachedMasks(Generic[M]):
    """The masks of one method by parameter name, in the model's order.

    Args:
        model: whose weights are masked in place.
        chosen: the weights, each free for a mask; a tied one is masked in all its uses.
        make: the mask of a weight.
    """

    def __init__(
        self, model: nn.Module, chosen: Iterable[Selected], make: Callable[[Selected], M]
    ) -> None:
        used = places(model)
        self.masks: dict[str, M] = {}
        self._layers: dict[str, str] = {}
        self._places: dict[str, list[Selected]] = {}
        for each in chosen:
            self._places[each.name] = used[id(each.stored)]
            mask = make(each)
            for owner in self._places[each.name]:
                attach(owner.module, owner.parameter_name, mask)
            self.masks[each.name] = mask
            self._layers[each.name] = each.layer

    def weights(self) -> dict[str, Tensor]:
        """The stored weights without their masks, detached."""
        return {name: owners[0].stored.detach() for name, owners in self._places.items()}

    def read(self, what: Callable[[M], Tensor]) -> dict[str, Tensor]:
        """What a function reads from each mask."""
        return {name: what(mask) for name, mask in self.masks.items()}

    def shares(self, what: Callable[[M], Tensor]) -> tuple[float, dict[str, float]]:
        """The share of entries that a function marks True: of all, and by layer."""
        return shares(self.read(what), self._layers)

    def fold(self) -> None:
        """Folds the masks into the weights and takes them off.

        Raises:
            RequestError: one does not commute with what is inside it; nothing is changed.
        """
        for name, mask in self.masks.items():
            for owner in self._places[name]:
                require_bakeable(owner.module, owner.parameter_name, mask)
        for name, mask in self.masks.items():
            scale = mask.scale
            for owner in self._places[name]:
                bake(owner.module, owner.parameter_name, mask)
                # A tied tensor now holds the scale: folding its other uses must not repeat it.
                mask.scale = 1.0
            mask.scale = scale
