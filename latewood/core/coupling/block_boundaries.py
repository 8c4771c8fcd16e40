"""Where blocks of positions begin in groups of one channel, which do not show it.

The four gates of a recurrent layer with one unit are four blocks of one position, the entries of a
single head one block of all: a new channel's positions go behind each block.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from latewood.core.coupling.label_layout import compact

__all__ = ["BlockBoundaries"]

_Places = tuple[Tensor, int, Sequence[int]]
_Pair = tuple[int, int]


class BlockBoundaries:
    """What a run says about neighbouring labels; looked at only if a group has one channel."""

    def __init__(self) -> None:
        self._cuts: list[_Places] = []
        self._unclear: list[_Places] = []
        self._sources: list[tuple[Tensor, Tensor, bool]] = []
        self._known: tuple[set[_Pair], set[_Pair]] | None = None

    def cut(self, labels: Tensor, dim: int, bounds: Sequence[int]) -> None:
        """Notes that blocks begin at some places along a dimension."""
        self._cuts.append((labels, dim, bounds))

    def unclear(self, labels: Tensor, dim: int, bounds: Sequence[int]) -> None:
        """Notes places along a dimension of which one cannot tell."""
        self._unclear.append((labels, dim, bounds))

    def follow(self, atoms: Tensor, source: Tensor, *, moved: bool = False) -> None:
        """Notes that the entries of an axis (size,) stand beside labels (..., size).

        Args:
            atoms: labels of the axis.
            source: labels.
            moved: whether something may have come between: where channels were transposed, blocks
                of one channel each look as before but are none.
        """
        self._sources.append((atoms, source, moved))

    def blocks(self, atoms: Tensor, positions: Tensor) -> tuple[int, ...] | None:
        """Which positions of one channel begin a block; None if that cannot be told.

        Args:
            atoms: labels of the axis.
            positions: of the channel on it, ascending.
        """
        places = positions.tolist()
        if len(places) == 1:
            return (0,)
        chosen = atoms[positions]
        rows = [(chosen, False), *self._beside(chosen)]
        cuts, unclear = self._pairs
        starts = [0]
        for number, (before, after) in enumerate(itertools.pairwise(places), start=1):
            if after - before > 1:
                starts.append(number)
                continue
            begins = False
            for row, moved in rows:
                pair = int(row[number - 1]), int(row[number])
                # The same entry twice: its copy can go behind the first or behind both.
                if pair in unclear or pair[0] == pair[1] or (moved and pair in cuts):
                    return None
                begins |= pair in cuts
            if begins:
                starts.append(number)
        return tuple(starts)

    @property
    def _pairs(self) -> tuple[set[_Pair], set[_Pair]]:
        if self._known is None:
            self._known = set(_pairs(self._cuts)), set(_pairs(self._unclear))
        return self._known

    def _beside(self, chosen: Tensor) -> Iterator[tuple[Tensor, bool]]:
        """What stands beside the entries, entry by entry."""
        for atoms, source, moved in self._sources:
            inside = torch.isin(atoms, chosen)
            if int(inside.sum()) == len(chosen):
                few = compact(source).expand(*compact(source).shape[:-1], len(atoms))
                for row in few[..., inside].reshape(-1, len(chosen)).unique(dim=0):
                    yield row, moved


def _pairs(places: Sequence[_Places]) -> Iterator[_Pair]:
    for labels, dim, bounds in places:
        few = compact(labels).movedim(dim, 0)
        if few.shape[0] != labels.shape[dim]:
            continue
        columns = few.reshape(few.shape[0], -1)
        for bound in bounds:
            if 0 < bound < len(columns):
                yield from zip(columns[bound - 1].tolist(), columns[bound].tolist(), strict=True)
