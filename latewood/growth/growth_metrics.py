"""What a growing network is and has cost so far, as plain numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from latewood.growth.growth_event import GrowthEvent
from latewood.growth.phase_costs import PhaseCost

__all__ = ["growth_metrics"]


def growth_metrics(
    widths: Mapping[str, Sequence[int]],
    costs: Sequence[PhaseCost],
    *,
    phase: int,
    steps: int,
    spent: int,
    event: GrowthEvent | None,
    measured: bool,
) -> dict[str, float]:
    """Widths and cost of the network now, cost of the training, and the loss around an event.

    Args:
        widths: of each group by phase.
        costs: of the network in each phase.
        phase: the present one.
        steps: optimizer steps so far.
        spent: multiply-accumulates of a forward pass on the example, summed over the steps.
        event: the latest widening, if there was one.
        measured: whether the loss is measured around events.

    Returns:
        As ``Growth.metrics`` says.
    """
    now, last = costs[phase], costs[-1]
    around = {"event/step": float(event.step if event else 0)}
    if measured:
        around["event/before"] = (event and event.loss_before) or 0.0
        around["event/after"] = (event and event.loss_after) or 0.0
    return {
        "phase": float(phase),
        "parameters": float(now.parameters),
        "macs": float(now.macs),
        "cost": now.macs / max(last.macs, 1),
        "training/macs": float(spent),
        "training/share": spent / max(steps * last.macs, 1),
        **around,
        **{f"width/{name}": float(of[phase]) for name, of in widths.items()},
    }
