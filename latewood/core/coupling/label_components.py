"""Which labels are one channel: a forest of labels that merges pairs in batches."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["NONE", "Components"]

NONE = -1
"""The label of an element that belongs to no channel."""


class Components:
    """Connected components of labels that only ever merge.

    Pairs wait until somebody asks for a component; then they are merged together, at a cost that
    does not depend on how many labels there are.
    """

    def __init__(self) -> None:
        # The last entry answers for NONE, which is -1.
        self._parent = np.full(1, NONE)
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []
        self._sizes: np.ndarray | None = None
        self.count = 0

    def grow(self, count: int) -> Tensor:
        """New labels, each a component of its own.

        Args:
            count: how many.
        """
        start, self.count = self.count, self.count + count
        if self.count >= len(self._parent):
            room = np.arange(max(2 * len(self._parent), self.count + 1))
            room[: len(self._parent) - 1] = self._parent[:-1]
            room[-1] = NONE
            self._parent = room
        self._sizes = None
        return torch.arange(start, self.count)

    def join(self, left: np.ndarray, right: np.ndarray) -> None:
        """Declares labels at the same place to be one component.

        Args:
            left: labels (n,), none of them NONE.
            right: labels (n,), none of them NONE.
        """
        self._waiting.append((left, right))

    def roots(self, labels: Tensor) -> Tensor:
        """One label of each label's component, the same for all of it; NONE for NONE."""
        self._merge()
        return torch.from_numpy(self._resolved(labels.numpy()))

    def sizes(self, roots: Tensor) -> Tensor:
        """How many labels the components of some roots have."""
        self._merge()
        if self._sizes is None:
            every = self._resolved(np.arange(self.count))
            self._sizes = np.bincount(every, minlength=self.count + 1)
        return torch.from_numpy(self._sizes[roots.numpy()])

    def _resolved(self, labels: np.ndarray) -> np.ndarray:
        roots: np.ndarray = self._parent[labels]
        while True:
            further = self._parent[roots]
            if np.array_equal(further, roots):
                break
            roots = further
        self._parent[labels] = roots
        return roots

    def _merge(self) -> None:
        if not self._waiting:
            return
        left, right = (
            self._resolved(np.concatenate(ends)) for ends in zip(*self._waiting, strict=True)
        )
        self._waiting.clear()
        different = left != right
        if not different.any():
            return
        left, right = left[different], right[different]
        nodes, places = _numbered(np.concatenate([left, right]), self.count)
        one, other = places[: len(left)], places[len(left) :]
        least = np.arange(len(nodes))
        while True:
            # Both ends take the smaller number, then everybody that of the one it points to.
            lower = np.minimum(least[one], least[other])
            before = least.copy()
            for end in (one, other):
                np.minimum.at(least, least[end], lower)
                np.minimum.at(least, end, lower)
            least = least[least]
            if np.array_equal(least, before):
                break
        self._parent[nodes] = nodes[least]
        self._sizes = None


def _numbered(labels: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The labels that occur, ascending, and which of them each one is; all are below a count."""
    if 8 * len(labels) < count:
        return np.unique(labels, return_inverse=True)
    # Most labels occur, and a table of all costs less than sorting them.
    occurs = np.zeros(count, dtype=bool)
    occurs[labels] = True
    nodes = np.flatnonzero(occurs)
    numbers = np.empty(count, dtype=np.int64)
    numbers[nodes] = np.arange(len(nodes))
    return nodes, numbers[labels]
