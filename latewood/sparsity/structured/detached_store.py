"""Detached entries: what they held is remembered, and comes back bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["Memory"]


class Memory:
    """The entries of one tensor that have been detached, on the CPU.

    Holds the smallest block of the full tensor that covers all positions which were ever present;
    what was never born takes no memory.
    """

    def __init__(self) -> None:
        self._positions: list[Tensor] | None = None
        self._values = torch.zeros(0)
        self._known = torch.zeros(0, dtype=torch.bool)

    def exchange(
        self,
        current: Tensor,
        before: Sequence[Tensor],
        after: Sequence[Tensor],
        fresh: Callable[[tuple[int, ...]], Tensor],
    ) -> tuple[Tensor, Tensor]:
        """The tensor at other positions: kept entries stay, detached ones return, others are born.

        Args:
            current: the tensor now.
            before: for each axis the positions of the full tensor that it has, ascending.
            after: those that it shall have.
            fresh: makes values for a shape.

        Returns:
            The new tensor, and where it was born, bool.
        """
        if any(not _contains(new, old) for old, new in zip(before, after, strict=True)):
            self._store(current, before)
        shape = tuple(len(each) for each in after)
        values = fresh(shape).to(current)
        born = torch.ones(shape, dtype=torch.bool)
        if self._positions is not None:
            theirs, ours = _shared(self._positions, after)
            known = self._known[theirs]
            values[ours] = torch.where(
                known.to(values.device), self._values[theirs].to(values), values[ours]
            )
            born[ours] &= ~known
        theirs, ours = _shared(before, after)
        values[ours] = current[theirs]
        born[ours] = False
        if self._positions is not None and all(
            _contains(new, own) for own, new in zip(self._positions, after, strict=True)
        ):
            self._positions = None  # all of it is present again
            self._values, self._known = torch.zeros(0), torch.zeros(0, dtype=torch.bool)
        return values, born

    def state(self) -> dict[str, Any] | None:
        """What to save; None if nothing is remembered."""
        if self._positions is None:
            return None
        return {"positions": self._positions, "values": self._values, "known": self._known}

    @classmethod
    def of(cls, state: dict[str, Any]) -> Memory:
        """The memory that was saved."""
        memory = cls()
        memory._positions = [each.clone() for each in state["positions"]]
        memory._values, memory._known = state["values"].clone(), state["known"].clone()
        return memory

    def _store(self, current: Tensor, positions: Sequence[Tensor]) -> None:
        covered = list(positions)
        if self._positions is not None:
            pairs = zip(covered, self._positions, strict=True)
            covered = [torch.cat(pair).unique() for pair in pairs]
        shape = [len(each) for each in covered]
        values = torch.zeros(shape, dtype=current.dtype)
        known = torch.zeros(shape, dtype=torch.bool)
        if self._positions is not None:
            theirs, ours = _shared(self._positions, covered)
            values[ours], known[ours] = self._values[theirs], self._known[theirs]
        theirs, ours = _shared(positions, covered)
        values[ours], known[ours] = current.detach().cpu()[theirs], True
        self._positions, self._values, self._known = covered, values, known


def _contains(whole: Tensor, part: Tensor) -> bool:
    return bool(torch.isin(part, whole).all())


def _shared(one: Sequence[Tensor], two: Sequence[Tensor]) -> tuple[Any, Any]:
    """Indices of the common block of two blocks of one tensor, in each of them."""
    mine = [torch.isin(a, b).nonzero().flatten() for a, b in zip(one, two, strict=True)]
    yours = [torch.isin(b, a).nonzero().flatten() for a, b in zip(one, two, strict=True)]
    return torch.meshgrid(*mine, indexing="ij"), torch.meshgrid(*yours, indexing="ij")
