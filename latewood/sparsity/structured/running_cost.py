"""What a choice of structures costs: a sum of parts, each of which a few groups decide."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

__all__ = ["Cost", "CostPart", "RunningCost"]


class CostPart(NamedTuple):
    """A part of the cost.

    Args:
        groups: whose widths decide it, by number.
        at: its value at the widths of all groups.
    """

    groups: tuple[int, ...]
    at: Callable[[Sequence[int]], float]


class Cost(ABC):
    """What a network of some widths and blocks costs."""

    @abstractmethod
    def parts(self, blocks: Sequence[bool]) -> list[CostPart]:
        """The parts that add up to the cost.

        Args:
            blocks: which removable blocks are there; groups inside absent ones decide nothing.
        """

    def at(self, widths: Sequence[int], blocks: Sequence[bool]) -> float:
        """The cost.

        Args:
            widths: channels of each group.
            blocks: which removable blocks are there.
        """
        return sum(part.at(widths) for part in self.parts(blocks))


class RunningCost:
    """The cost of a network whose widths change one after the other: only what they decide is
    computed anew, and the sum is ``Cost.at`` to the bit.

    Args:
        cost: of a network.
        widths: channels of each group at first.
        blocks: which removable blocks are there.
    """

    def __init__(self, cost: Cost, widths: Sequence[int], blocks: Sequence[bool]) -> None:
        self.widths = list(widths)
        """Channels of each group now."""
        self._parts = cost.parts(blocks)
        self._values = [part.at(self.widths) for part in self._parts]
        self._decided: list[list[int]] = [[] for _ in widths]
        for number, part in enumerate(self._parts):
            for group in part.groups:
                self._decided[group].append(number)

    @property
    def total(self) -> float:
        """The cost now."""
        return sum(self._values)

    def change(self, group: int, by: int) -> float:
        """Changes the width of a group and returns the cost.

        Args:
            group: its number.
            by: channels that come, or below 0 go.
        """
        self.widths[group] += by
        for number in self._decided[group]:
            self._values[number] = self._parts[number].at(self.widths)
        return self.total
