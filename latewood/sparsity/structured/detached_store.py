"""What detached entries of a tensor held: it is stored, and comes back bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["DetachedStore"]


class DetachedStore:
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
        *,
        remember: bool = True,
    ) -> Tensor:
        """The tensor at other positions: present entries stay, detached ones return, some are new.

        Args:
            current: the tensor now.
            before: for each axis the positions of the full tensor that it has, ascending.
            after: those that it shall have.
            fresh: makes values for a shape.
            remember: whether what goes is stored.

        Returns:
            The tensor at the positions after.
        """
        leaves = any(not _contains(new, old) for old, new in zip(before, after, strict=True))
        if remember and leaves:
            self._store(current, before)
        values = fresh(tuple(len(positions) for positions in after)).to(current)
        if self._positions is not None:
            stored, wanted = _shared(self._positions, after)
            known = self._known[stored].to(values.device)
            values[wanted] = torch.where(known, self._values[stored].to(values), values[wanted])
        staying, wanted = _shared(before, after)
        values[wanted] = current[staying]
        if self._positions is not None and all(
            _contains(new, old) for old, new in zip(self._positions, after, strict=True)
        ):
            self._positions = None  # all of it is present again
            self._values, self._known = torch.zeros(0), torch.zeros(0, dtype=torch.bool)
        return values

    def state(self) -> dict[str, Any] | None:
        """What to save; None if nothing is stored."""
        if self._positions is None:
            return None
        return {"positions": self._positions, "values": self._values, "known": self._known}

    @classmethod
    def of(cls, state: dict[str, Any]) -> DetachedStore:
        """The store that was saved."""
        store = cls()
        store._positions = [positions.clone() for positions in state["positions"]]
        store._values, store._known = state["values"].clone(), state["known"].clone()
        return store

    def _store(self, current: Tensor, positions: Sequence[Tensor]) -> None:
        covered = list(positions)
        if self._positions is not None:
            pairs = zip(covered, self._positions, strict=True)
            covered = [torch.cat(pair).unique() for pair in pairs]
        shape = [len(axis) for axis in covered]
        values = torch.zeros(shape, dtype=current.dtype)
        known = torch.zeros(shape, dtype=torch.bool)
        if self._positions is not None:
            stored, inside = _shared(self._positions, covered)
            values[inside], known[inside] = self._values[stored], self._known[stored]
        leaving, inside = _shared(positions, covered)
        values[inside], known[inside] = current.detach().cpu()[leaving], True
        self._positions, self._values, self._known = covered, values, known


def _contains(whole: Tensor, part: Tensor) -> bool:
    return bool(torch.isin(part, whole).all())


def _shared(one: Sequence[Tensor], two: Sequence[Tensor]) -> tuple[Any, Any]:
    """Indices of the common block of two blocks of one tensor, in each of them."""
    in_one = [torch.isin(a, b).nonzero().flatten() for a, b in zip(one, two, strict=True)]
    in_two = [torch.isin(b, a).nonzero().flatten() for a, b in zip(one, two, strict=True)]
    return torch.meshgrid(*in_one, indexing="ij"), torch.meshgrid(*in_two, indexing="ij")
