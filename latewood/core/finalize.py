"""The end of the methods on a model: the order in which they finish, and that it comes once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from torch import nn

from latewood.core.protocols import Method
from latewood.core.transforms import FAULTS, MASK, PRECISION
from latewood.errors import RequestError, invalid

__all__ = ["SHAPES", "EndsOnce", "finalize"]

SHAPES: Final = 3
"""The order of a method that changes shapes: it finishes last."""

_FIRST_TO_LAST: Final = (None, FAULTS, PRECISION, MASK, SHAPES)


def finalize(model: nn.Module, methods: Sequence[Method]) -> nn.Module:
    """Finalizes the methods on a model in the one order in which each finds what it needs.

    Faults come off first, then what stays is baked from the inside out, number formats before
    masks, and shapes come last. Methods of one order finish as they are listed.

    Args:
        model: the methods were built on.
        methods: all of them, none finalized.

    Returns:
        The model with plain layers: the same object, or what a method has made around its layers.

    Raises:
        RequestError: a method that does not say its order, or is finalized; a mask over a number
            format that none of the methods bakes; or a new model without the layers that later
            methods work on, or without the new model that an earlier one has made.
    """
    for method in methods:
        order = getattr(method, "order", "none")
        if order not in _FIRST_TO_LAST:
            allowed = "PRECISION, MASK, FAULTS, SHAPES or, without transformations, None"
            raise invalid(f"{type(method).__name__}.order", order, allowed)
        if isinstance(method, EndsOnce):
            method.require_active("finalize")
    ordered = sorted(methods, key=lambda method: _FIRST_TO_LAST.index(method.order))
    final = model
    for position, method in enumerate(ordered):
        outcome = method.finalize()
        # What changed the model in place returns the one it was built on, also where that is
        # inside another by now.
        if outcome is model or outcome is final:
            continue
        modules = set(outcome.modules())
        layers = [module for module in final.modules() if _owns(module)]
        later = [type(other).__name__ for other in ordered[position + 1 :]]
        if later and not modules.issuperset(layers):
            raise RequestError(
                f"methods: {type(method).__name__} returned another model without the layers that "
                f"{', '.join(later)} would change; expected a model of the same layers"
            )
        if final is not model and final not in modules:
            raise RequestError(
                f"methods: {type(method).__name__} returned another model, as a method before it "
                "did; expected one of them to change the model in place"
            )
        final = outcome
    return final


def _owns(module: nn.Module) -> bool:
    return next(module.parameters(recurse=False), None) is not None


class EndsOnce:
    """Part of a method: the one rule for calls after ``finalize``.

    What reads, ``metrics`` and ``state_dict``, answers as at the end; every other call of the
    protocol is refused.
    """

    finalized = False
    """Whether ``finalize`` has been called."""

    def require_active(self, call: str) -> None:
        """Refuses a call after ``finalize``.

        Args:
            call: name of the method of this class that was called.

        Raises:
            RequestError: it has been called.
        """
        if self.finalized:
            name = type(self).__name__
            raise RequestError(
                f"{name}: finalized; {call} is refused, since nothing of it is left in the model; "
                f"build a new {name} to go on"
            )
