"""All ways to choose registers of a few patterns, tried for many sets of patterns in step."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

__all__ = ["ChoiceSearch", "choices"]


class ChoiceSearch:
    """Goes through all ways to choose a number of registers, for many sets in step.

    Args:
        room: (5, n) what there is: for 4-bit elements, for those of 4 and 2 bits, for all (as
            granules of four elements), and what is left of 2-bit and 1-bit elements.
        steps: (size, 5, n) what a register of each pattern adds.
        least: (n,) promoted elements that a choice has to stay below; becomes the fewest.
        choice: (n,) number of the choice with them, -1 for none yet; changed in place.
    """

    def __init__(
        self,
        room: NDArray[np.signedinteger],
        steps: NDArray[np.signedinteger],
        least: NDArray[np.signedinteger],
        choice: NDArray[np.int64] | None = None,
    ) -> None:
        number, self._dtype = room.shape[1], room.dtype
        bits = 8 * room.dtype.itemsize
        self._sign, self._infeasible = bits - 1, 1 << (bits - 2)
        choice = np.full(number, -1, dtype=np.int64) if choice is None else choice
        self.start, self.least, self.choice = room, least, choice
        self._steps = steps
        # The most that a register of this or a later pattern adds to the first three, and the least
        # that it adds to the last two: what bounds everything that can follow.
        self._bounds = [steps[-1]]
        for step in steps[-2::-1]:
            bound = np.empty_like(step)
            np.maximum(self._bounds[0][:3], step[:3], out=bound[:3])
            np.minimum(self._bounds[0][3:], step[3:], out=bound[3:])
            self._bounds.insert(0, bound)
        self._short, self._left, self._promoted = (
            np.empty(number, dtype=room.dtype) for _ in range(3)
        )
        self._better = np.empty(number, dtype=np.bool_)

    def visit(self, place: int, free: int, room: NDArray[np.signedinteger], number: int) -> None:
        """Tries all choices of ``free`` registers from pattern ``place`` on.

        From all registers of a pattern down to none, the order of ``choices``.

        Args:
            place: of the pattern.
            free: registers to choose.
            room: (5, n) before that.
            number: of the first of these choices.
        """
        last = len(self._steps) - 1
        if place >= last - 1:
            self._innermost(place, free, room, number)
            return
        alive = self._alive(place, free, room)
        if 2 * len(alive) <= room.shape[1]:
            if len(alive):
                part = ChoiceSearch(
                    room[:, alive],
                    self._steps[place:, :, alive],
                    self.least[alive],
                    self.choice[alive],
                )
                part._all(0, free, part.start, number)
                self.least[alive], self.choice[alive] = part.least, part.choice
            return
        self._all(place, free, room, number)

    def _all(self, place: int, free: int, room: NDArray[np.signedinteger], number: int) -> None:
        parts = len(self._steps) - place
        if parts <= 2:
            self._innermost(place, free, room, number)
            return
        current = room + self._dtype.type(free) * self._steps[place]
        for chosen in range(free, -1, -1):
            self.visit(place + 1, free - chosen, current, number)
            number += math.comb(free - chosen + parts - 2, parts - 2)
            current -= self._steps[place]

    def _alive(self, place: int, free: int, room: NDArray[np.signedinteger]) -> NDArray[np.intp]:
        """The sets that may yet get a choice with fewer promotions than they have."""
        reach = self._bounds[place] * self._dtype.type(free)
        reach += room
        short = np.minimum(reach[0], reach[1])
        np.minimum(short, reach[2], out=short)
        np.maximum(reach[3:], 0, out=reach[3:])
        reach[3] += reach[4]
        alive: NDArray[np.intp] = ((short >= 0) & (reach[3] < self.least)).nonzero()[0]
        return alive

    def _innermost(
        self, place: int, free: int, room: NDArray[np.signedinteger], number: int
    ) -> None:
        """The choices among the last two patterns, or with the only one."""
        alive = self._alive(place, free, room)
        if not len(alive):
            return
        if 2 * len(alive) <= room.shape[1]:
            steps = self._steps[place:, :, alive]
            part = ChoiceSearch(room[:, alive], steps, self.least[alive], self.choice[alive])
            part._try_all(0, free, part.start, number)
            self.least[alive], self.choice[alive] = part.least, part.choice
        else:
            self._try_all(place, free, room, number)

    def _try_all(self, place: int, free: int, room: NDArray[np.signedinteger], number: int) -> None:
        current = room + self._dtype.type(free) * self._steps[place]
        self._look(current, number)
        if place < len(self._steps) - 1:
            swap = self._steps[place + 1] - self._steps[place]
            for following in range(number + 1, number + free + 1):
                current += swap
                self._look(current, following)

    def _look(self, room: NDArray[np.signedinteger], number: int) -> None:
        np.minimum(room[0], room[1], out=self._short)
        np.minimum(self._short, room[2], out=self._short)
        # A room below zero becomes a number larger than any count of promoted elements.
        self._short >>= self._sign
        self._short &= self._infeasible
        np.maximum(room[3], 0, out=self._left)
        np.maximum(room[4], 0, out=self._promoted)
        self._promoted += self._left
        self._promoted |= self._short
        np.less(self._promoted, self.least, out=self._better)
        places = self._better.nonzero()[0]
        if len(places):
            self.least[places] = self._promoted[places]
            self.choice[places] = number


@functools.lru_cache(maxsize=64)
def choices(total: int, parts: int) -> NDArray[np.int64]:
    """All ways to write a number as a sum, in the order in which they are tried.

    Args:
        total: the number.
        parts: of the sum.

    Returns:
        (ways, parts), from all in the first part to all in the last.
    """
    return np.array(list(_compositions(total, parts)), dtype=np.int64)


def _compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    if parts == 1:
        yield (total,)
        return
    for first in range(total, -1, -1):
        for rest in _compositions(total - first, parts - 1):
            yield (first, *rest)
