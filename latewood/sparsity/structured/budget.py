"""A budget: which cost is limited, and to how much."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor, nn

from latewood.errors import RequestError, invalid
from latewood.slim.comparison import Examples
from latewood.sparsity.structured.costs import parameters
from latewood.sparsity.structured.latency_measurement import measured_latency
from latewood.sparsity.structured.latency_table import MeasuredLatency
from latewood.sparsity.structured.running_cost import Cost
from latewood.sparsity.structured.structure_spec import StructureSpec

__all__ = ["Budget"]

_COST_KINDS = ("parameters", "macs", "latency_ms", "latency")


@dataclass(frozen=True)
class Budget:
    """A limit on one cost.

    Args:
        kind: what is limited.
        value: as the user wrote it.
        limit: how much it may be.
        full: the full model's cost.
        cost: of a network.
        parameters: the number of parameters of a network.
    """

    kind: str
    value: float
    limit: float
    full: float
    cost: Cost
    parameters: Cost

    @classmethod
    def of(
        cls,
        budget: Mapping[str, float],
        model: nn.Module,
        spec: StructureSpec,
        macs: Cost,
        example_inputs: Examples,
    ) -> Budget:
        """Reads a budget as a user writes it.

        Args:
            budget: one kind and its value.
            model: the full model.
            spec: its structures.
            macs: multiply-accumulates of its networks.
            example_inputs: what it is called with.

        Raises:
            RequestError: another kind, several, a value out of range, or one that not even the
                narrowest network meets, with one block if there are blocks.
        """
        if (
            not isinstance(budget, Mapping)
            or len(budget) != 1
            or next(iter(budget)) not in _COST_KINDS
        ):
            raise invalid("budget", budget, f"one of {', '.join(_COST_KINDS)} with its value")
        ((kind, value),) = budget.items()
        if not isinstance(value, int | float) or not 0.0 < value < math.inf:
            raise invalid(f"budget.{kind}", value, "a positive number")
        if kind == "latency" and value > 1:
            raise invalid("budget.latency", value, "a share; milliseconds are called latency_ms")
        count = parameters(spec)
        cost: Cost
        if kind.startswith("latency"):
            cost = measured_latency(model, spec, example_inputs)
        else:
            cost = count if kind == "parameters" else macs
        return cls._limited(kind, value, cost, count, spec)

    @classmethod
    def _limited(
        cls, kind: str, value: float, cost: Cost, count: Cost, spec: StructureSpec
    ) -> Budget:
        all_blocks = [True] * len(spec.blocks)
        full = cost.at([group.width for group in spec.groups], all_blocks)
        is_share = value <= 1 and kind != "latency_ms"
        limit = value * full if is_share else float(value)
        least = _least(cost, spec)
        if least > limit:
            of_what = "one channel in each group" + (" and one block" if spec.blocks else "")
            share = f" (a share of {_as_share(least, full)})" if is_share else ""
            raise RequestError(
                f"budget.{kind}: got {value!r}, which is {limit:.6g} of {full:.6g}; expected at "
                f"least {least:.6g}, {of_what}{share}"
            )
        return cls(kind, value, min(limit, full), full, cost, count)

    def times(self, factor: float) -> Budget:
        """So many times the limit, up to the full model's cost."""
        return replace(self, limit=min(factor * self.limit, self.full))

    def table(self) -> list[Tensor] | None:
        """What was measured; None for a cost that is counted."""
        return self.cost.table() if isinstance(self.cost, MeasuredLatency) else None

    def having(self, table: list[Tensor] | None, spec: StructureSpec) -> Budget:
        """The same budget by what was measured at another time."""
        if table is None or not isinstance(self.cost, MeasuredLatency):
            return self
        cost = self.cost.having(table)
        return self._limited(self.kind, self.value, cost, self.parameters, spec)


def _least(cost: Cost, spec: StructureSpec) -> float:
    """What the narrowest network costs; of the blocks, if there are any, the cheapest is there."""
    # Without any block there may be nothing left that learns.
    narrowest = [1] * len(spec.groups)
    numbers = range(len(spec.blocks))
    choices = [[number == only for number in numbers] for only in numbers] or [[]]
    return min(cost.at(narrowest, blocks) for blocks in choices)


def _as_share(least: float, full: float) -> str:
    """A share of the full cost that is met when it is written again, rounded up."""
    return f"{math.ceil(1e4 * least / full) / 1e4:g}"
