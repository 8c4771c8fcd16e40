"""Facts about tensors, kept as long as the tensors live."""

from __future__ import annotations

import weakref
from typing import Any, Generic, TypeVar

from torch import Tensor

__all__ = ["TensorTable"]

Fact = TypeVar("Fact")


class TensorTable(Generic[Fact]):
    """Facts by tensor: by which object it is, not by its values.

    A run looks tensors up several times an operation, where torch's dictionary of weak keys costs
    more than many a rule.
    """

    def __init__(self) -> None:
        self._facts: dict[int, tuple[weakref.KeyedRef[int, Tensor], Fact]] = {}

    def __setitem__(self, tensor: Tensor, fact: Fact) -> None:
        number = id(tensor)
        self._facts[number] = weakref.KeyedRef(tensor, self._forget, number), fact

    def __contains__(self, tensor: Tensor) -> bool:
        known = self._facts.get(id(tensor))
        return known is not None and known[0]() is tensor

    def get(self, tensor: Tensor, default: Any = None) -> Any:
        """What is known of a tensor, or the default."""
        known = self._facts.get(id(tensor))
        return known[1] if known is not None and known[0]() is tensor else default

    def pop(self, tensor: Tensor) -> None:
        """Forgets a tensor, if it is known."""
        self._facts.pop(id(tensor), None)

    def __getitem__(self, tensor: Tensor) -> Fact:
        number, fact = self._facts[id(tensor)]
        if number() is not tensor:
            raise KeyError(tensor)
        return fact

    def _forget(self, reference: weakref.KeyedRef[int, Tensor]) -> None:
        known = self._facts.get(reference.key)
        if known is not None and known[0] is reference:
            del self._facts[reference.key]
