"""The time that a network takes: a table of measured layers, interpolated between a few widths."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor

from latewood.sparsity.structured.running_cost import Cost, CostPart

__all__ = ["LayerLatency", "MeasuredLatency", "Surface"]


@dataclass(frozen=True)
class Surface:
    """Milliseconds over one or two widths, linear in between, rising with each.

    Args:
        marks: for each variable the widths that were measured, ascending.
        values: measured there, shape (len(marks[0]), len(marks[1])), (len(marks[0]),) or ().
    """

    marks: tuple[tuple[float, ...], ...]
    values: Tensor

    @classmethod
    def rising(cls, marks: tuple[tuple[float, ...], ...], values: Tensor) -> Surface:
        """A surface that no noise of the measurement lets fall."""
        for axis in range(values.ndim):
            values = values.cummax(axis).values
        return cls(marks, values)

    @cached_property
    def _rows(self) -> Any:
        """The values as plain numbers, nested: the selection asks thousands of times."""
        return self.values.tolist()

    def at(self, *widths: float) -> float:
        """The value at some widths, those beyond the marks taken as the outermost."""
        pairs = zip(self.marks, widths, strict=True)
        return _interpolated(self._rows, [_between(marks, width) for marks, width in pairs])


@dataclass(frozen=True)
class LayerLatency:
    """A layer's time over the channels that it makes and those that it reads.

    Args:
        variables: for each of these the groups whose channels add up to it, by number.
        surface: milliseconds over the variables.
        block: number of the removable block that the layer is in; None if it is in none.
    """

    variables: tuple[tuple[int, ...], ...]
    surface: Surface
    block: int | None

    def at(self, widths: Sequence[int]) -> float:
        """Milliseconds at the widths of all groups."""
        sums = (sum(widths[group] for group in groups) for groups in self.variables)
        return self.surface.at(*sums)


class MeasuredLatency(Cost):
    """The sum of the layers' times, and of what is between them.

    Args:
        layers: of the full model.
        between: milliseconds outside of layers, over the mean share of channels.
        full: channels of each group in the full model.
        block_of: for each group the removable block that it vanishes with, or None.
    """

    def __init__(
        self,
        layers: Sequence[LayerLatency],
        between: Surface,
        full: Sequence[int],
        block_of: Sequence[int | None],
    ) -> None:
        self._layers = list(layers)
        self._between = between
        self._full = list(full)
        self._block_of = list(block_of)

    def parts(self, blocks: Sequence[bool]) -> list[CostPart]:
        """What is between the layers, and those that are there.

        Channels inside an absent block have no share in what is between.
        """
        layers = [layer for layer in self._layers if layer.block is None or blocks[layer.block]]
        there = tuple(
            group for group, block in enumerate(self._block_of) if block is None or blocks[block]
        )

        def between(widths: Sequence[int]) -> float:
            shares = (widths[group] / self._full[group] for group in there)
            return self._between.at(sum(shares) / len(self._full))

        of_layers = (
            CostPart(tuple({group for groups in layer.variables for group in groups}), layer.at)
            for layer in layers
        )
        return [CostPart(there, between), *of_layers]

    def table(self) -> list[Tensor]:
        """What was measured, for a file or for another process."""
        return [self._between.values, *(layer.surface.values for layer in self._layers)]

    def having(self, table: Sequence[Tensor]) -> MeasuredLatency:
        """The same network with what was measured at another time."""
        between, *values = table
        layers = [
            replace(layer, surface=replace(layer.surface, values=measured))
            for layer, measured in zip(self._layers, values, strict=True)
        ]
        between_layers = replace(self._between, values=between)
        return MeasuredLatency(layers, between_layers, self._full, self._block_of)


def _interpolated(rows: Any, points: Sequence[tuple[int, float]]) -> float:
    """The value of nested rows at a point of each axis, linear between two marks."""
    if not points:
        return float(rows)
    (low, fraction), *rest = points
    value = _interpolated(rows[low], rest)
    if fraction == 0.0:
        return value
    return value * (1 - fraction) + fraction * _interpolated(rows[low + 1], rest)


def _between(marks: Sequence[float], width: float) -> tuple[int, float]:
    """The mark below a width, and the fraction of the way to the next."""
    low = max(0, min(bisect.bisect_right(marks, width) - 1, len(marks) - 1))
    if low == len(marks) - 1 or width <= marks[low]:
        return low, 0.0
    return low, (width - marks[low]) / (marks[low + 1] - marks[low])
