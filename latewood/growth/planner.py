"""Choosing a growth schedule by what steps take on this machine, not by multiply-accumulates."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from scipy.optimize import linprog
from torch import nn

from latewood.core import trace_channels
from latewood.errors import RequestError, invalid, require_count
from latewood.growth.growing_widths import growing_widths
from latewood.growth.growth_schedule import FinalWidths, GrowthSchedule, explicit, phased
from latewood.growth.step_costs import MakeOptimizer, StepCost, TrainStep, measure_steps
from latewood.slim.comparison import Examples

__all__ = ["Plan", "ScheduleChoice", "plan_schedule"]

_CANDIDATES: Final = 8
"""Networks measured between the narrowest and the widest, before they are aligned."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A schedule with what it takes.

    Args:
        costs: of each phase's network, the narrowest first.
        epochs: of each phase.
        steps_per_epoch: optimizer steps of an epoch.
    """

    costs: Sequence[StepCost]
    epochs: Sequence[int]
    steps_per_epoch: int

    @property
    def seconds(self) -> float:
        """Predicted seconds of all steps and widenings; data and validation not counted."""
        steps = [self.steps_per_epoch * epochs for epochs in self.epochs]
        training = sum(n * cost.seconds for n, cost in zip(steps, self.costs, strict=True))
        return training + sum(cost.widening_seconds for cost in self.costs)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of a forward pass on the example, over all steps."""
        return self.steps_per_epoch * sum(
            epochs * cost.macs for epochs, cost in zip(self.epochs, self.costs, strict=True)
        )

    @property
    def schedule(self) -> GrowthSchedule:
        """What ``Growth`` takes."""
        return explicit(widths=self.widths, epochs=self.epochs)

    @property
    def widths(self) -> dict[str, list[int]]:
        """The width of each group by phase."""
        return {name: [cost.widths[name] for cost in self.costs] for name in self.costs[0].widths}

    def section(self) -> dict[str, object]:
        """The schedule as a recipe writes it."""
        return {"name": "explicit", "widths": self.widths, "epochs": list(self.epochs)}


@dataclass(frozen=True, kw_only=True)
class ScheduleChoice:
    """What was measured and chosen.

    Args:
        chosen: the fastest schedule found.
        reference: the paper's, of even widths.
        fixed: the final network from the start.
        measured: all networks that were measured.
    """

    chosen: Plan
    reference: Plan
    fixed: Plan
    measured: Sequence[StepCost] = field(repr=False)


def plan_schedule(
    model: nn.Module,
    example_inputs: Examples,
    *,
    end: FinalWidths = 4.0,
    epochs: int,
    steps_per_epoch: int,
    phases: int = 4,
    align: int = 16,
    tolerance: float = 0.02,
    reference: GrowthSchedule | None = None,
    exclude: Sequence[str] = (),
    train_step: TrainStep | None = None,
    make_optimizer: MakeOptimizer | None = None,
    seconds: float = 1.0,
    clock: Callable[[], float] | None = None,
    report: Callable[[float], object] | None = None,
) -> ScheduleChoice:
    """Measures steps at candidate widths and chooses the fastest schedule of equal cost.

    Equal means as many multiply-accumulates in all as the reference's, within ``tolerance``, and
    at least as many epochs at the full width. Candidates are aligned: kernels take as long for 20
    channels as for 32, where they fill vectors of 16.

    Args:
        model: at the widths it begins with; it stays as it is.
        example_inputs: what it is called with; batch size 1 gives MACs per sample.
        end: how many times the present widths the final ones are, or final widths by layer or
            group.
        epochs: of the run.
        steps_per_epoch: optimizer steps of an epoch.
        phases: most phases of the schedule to choose; few where a compiler is used, which each
            event sets to work again.
        align: an even number; widths on the way are multiples of it where a group is wide enough.
        tolerance: largest difference of the cost, as a share.
        reference: what to be compared with; None is the paper's (``phased``), with as many of its
            nine phases as the epochs have room for.
        exclude: patterns on names of groups that keep their widths.
        train_step: as for ``measure_steps``; as the run does it, so that the prediction holds.
        make_optimizer: as for ``measure_steps``.
        seconds: of measuring, about.
        clock: as for ``core.timing.typical_times``.
        report: as for ``core.timing.typical_times``.

    Returns:
        The choice, the reference and the fixed network with their predicted seconds.

    Raises:
        RequestError: an argument out of range, widths that the model cannot have, or no schedule of
            equal cost.
    """
    for name, count in (("epochs", epochs), ("steps_per_epoch", steps_per_epoch)):
        require_count(name, count)
    require_count("phases", phases)
    if phases < 2:
        raise invalid("phases", phases, "at least 2, since one phase does not grow")
    if not 0.0 < tolerance < 1.0:
        raise invalid("tolerance", tolerance, "a share in (0, 1)")
    paper = reference or phased(end=end, phases=max(2, min(9, epochs // 3)))
    plan = trace_channels(model, example_inputs)
    by_phase = growing_widths(plan, paper, exclude)
    lengths = _lengths(paper.starts(epochs), epochs)
    of_paper = [{name: of[phase] for name, of in by_phase.items()} for phase in range(paper.phases)]
    candidates = _aligned(of_paper[0], of_paper[-1], align)
    wanted = [*candidates, *(widths for widths in of_paper if widths not in candidates)]
    costs = measure_steps(
        model,
        example_inputs,
        wanted,
        train_step=train_step,
        make_optimizer=make_optimizer,
        seconds=seconds,
        clock=clock,
        report=report,
    )
    by_widths = {tuple(cost.widths.values()): cost for cost in costs}
    baseline = Plan(
        costs=[by_widths[tuple(widths.values())] for widths in of_paper],
        epochs=lengths,
        steps_per_epoch=steps_per_epoch,
    )
    fixed = Plan(
        costs=[replace(baseline.costs[-1], widening_seconds=0.0)],
        epochs=[epochs],
        steps_per_epoch=steps_per_epoch,
    )
    chosen = _fastest(costs[: len(candidates)], baseline, phases, tolerance)
    return ScheduleChoice(chosen=chosen, reference=baseline, fixed=fixed, measured=costs)


def _lengths(starts: Sequence[int], epochs: int) -> list[int]:
    return [after - before for before, after in itertools.pairwise([*starts, epochs])]


def _aligned(first: Mapping[str, int], last: Mapping[str, int], align: int) -> list[dict[str, int]]:
    """Width sets from the first to the last, whose groups are as wide as aligned widths allow."""
    if not isinstance(align, int) or isinstance(align, bool) or align < 2 or align % 2:
        raise invalid("align", align, "an even number of channels")
    candidates = [dict(first)]
    for share in np.linspace(0.0, 1.0, _CANDIDATES + 2)[1:-1]:
        widths = {
            name: _near(
                first[name] + share * (last[name] - first[name]), first[name], last[name], align
            )
            for name in first
        }
        if widths not in candidates and widths != last:
            candidates.append(widths)
    return [*candidates, dict(last)]


def _near(wanted: float, first: int, last: int, align: int) -> int:
    """The aligned width nearest to one wanted; without alignment where none is in reach."""
    aligned = align * round(wanted / align)
    if first <= aligned <= last and (aligned - first) % 2 == 0:
        return aligned
    return min(last, first + 2 * round((wanted - first) / 2))


def _fastest(
    candidates: Sequence[StepCost], reference: Plan, phases: int, tolerance: float
) -> Plan:
    """The fastest schedule through some of the candidates, from the first to the last."""
    first, *between, last = candidates
    plans = []
    for count in range(min(phases - 2, len(between)) + 1):
        for chosen in itertools.combinations(between, count):
            plans += _of_equal_cost([first, *chosen, last], reference, tolerance)
    if not plans:
        raise RequestError(
            f"tolerance: got {tolerance!r}; expected more, or more than {sum(reference.epochs)} "
            "epochs: no schedule of whole epochs costs as much as the reference"
        )
    return min(plans, key=lambda plan: plan.seconds)


def _of_equal_cost(costs: Sequence[StepCost], reference: Plan, tolerance: float) -> list[Plan]:
    """Schedules of whole epochs through these networks that cost what the reference does."""
    epochs, least_last = sum(reference.epochs), reference.epochs[-1]
    macs = np.array([cost.macs for cost in costs], dtype=float)
    target = reference.macs / reference.steps_per_epoch
    solved = linprog(
        [cost.seconds for cost in costs],
        A_eq=np.stack([np.ones(len(costs)), macs / macs[-1]]),
        b_eq=[epochs, target / macs[-1]],
        bounds=[(1, None)] * (len(costs) - 1) + [(least_last, None)],
    )
    if not solved.success:
        return []
    plans = []
    whole = [sorted({int(np.floor(length)), int(np.ceil(length))}) for length in solved.x[:-1]]
    for lengths in itertools.product(*whole):
        rest = epochs - sum(lengths)
        if min(lengths) >= 1 and rest >= 1:
            plan = Plan(
                costs=costs, epochs=[*lengths, rest], steps_per_epoch=reference.steps_per_epoch
            )
            if abs(plan.macs / reference.macs - 1.0) <= tolerance:
                plans.append(plan)
    return plans
