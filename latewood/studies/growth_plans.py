"""What a recipe that grows will take: its groups and phases, measured steps, a faster schedule."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import nn
from torch.optim import Optimizer

from latewood.core import parameter_groups, trace_channels
from latewood.errors import invalid
from latewood.growth import Growth
from latewood.growth.planner import ScheduleChoice, plan_schedule
from latewood.growth.step_costs import StepCost, measure_steps
from latewood.tasks import Batch, epoch_order
from latewood.terminal.progress import progress
from latewood.terminal.tables import Row
from latewood.training import components
from latewood.training.fit import compute_gradients
from latewood.training.recipe import Recipe
from latewood.training.run_context import build_task, joined_processes
from latewood.training.run_folder import RunFolder
from latewood.training.session import Session
from latewood.training.session_builder import open_session

__all__ = ["GrowthPlan", "GrowthSimulation", "plan_growth", "simulate_growth"]


_MARKS: Final = 100


@dataclass(frozen=True)
class GrowthPlan:
    """What a recipe's growth comes to.

    Args:
        groups: one row a channel group: its widths by phase, or why it stays as it is.
        phases: one row a phase: epochs, steps, size, and the predicted seconds of its steps.
        seconds: predicted for all steps and widenings.
        fixed_seconds: predicted for as many steps of the final network.
        macs_share: multiply-accumulates of the training over the final network's.
    """

    groups: list[Row]
    phases: list[Row]
    seconds: float
    fixed_seconds: float
    macs_share: float


@dataclass(frozen=True)
class GrowthSimulation:
    """Measured networks, and schedules with what they take.

    Args:
        networks: one row a network that was measured.
        schedules: one row a schedule: the recipe's, the chosen one, the fixed network.
        section: the chosen schedule as a recipe writes it.
    """

    networks: list[Row]
    schedules: list[Row]
    section: dict[str, object]


def plan_growth(
    recipe: Recipe, *, seconds: float = 2.0, show_progress: bool | None = None
) -> GrowthPlan:
    """Traces a recipe's network, widens copies through its phases, and times their steps.

    Args:
        recipe: with a growth method; nothing is trained or written.
        seconds: of measuring, about.
        show_progress: None shows it when it takes longer than two seconds; False never.

    Raises:
        RequestError: a recipe without growth, or one that cannot be built here.
    """
    with _opened(recipe) as (session, growth), _measuring(show_progress) as report:
        stretches = _stretches(session, growth)
        by_size: dict[int, set[int]] = {}
        for stretch in stretches:
            by_size.setdefault(stretch.batch_size, set()).add(stretch.phase)
        last = growth.schedule.phases - 1
        measured: dict[tuple[int, int], StepCost] = {}
        for number_of_size, (size, phases) in enumerate(by_size.items()):
            numbers = sorted({*phases, last})

            def advance(share: float, before: int = number_of_size) -> None:
                report((before + share) / len(by_size))

            costs = _measured(session, growth, numbers, size, seconds / len(by_size), advance)
            measured |= {(number, size): cost for number, cost in zip(numbers, costs, strict=True)}
        taken = [0.0] * (last + 1)
        fixed = 0.0
        for stretch in stretches:
            taken[stretch.phase] += (
                stretch.steps * measured[stretch.phase, stretch.batch_size].seconds
            )
            fixed += stretch.steps * measured[last, stretch.batch_size].seconds
        rows: list[Row] = []
        ends = [*growth.starts[1:], session.epochs.count]
        for phase, (start, end) in enumerate(zip(growth.starts, ends, strict=True)):
            steps = sum(stretch.steps for stretch in stretches if stretch.phase == phase)
            size = next(s.batch_size for s in stretches if s.phase == phase)
            cost = growth.costs[phase]
            rows.append(
                {
                    "phase": str(phase),
                    "from epoch": start,
                    "epochs": end - start,
                    "steps": steps,
                    "parameters": cost.parameters,
                    "MACs": cost.macs,
                    "cost": f"{cost.macs / growth.costs[-1].macs:.1%}",
                    "ms a step": 1e3 * measured[phase, size].seconds,
                    "seconds": taken[phase],
                }
            )
        events = sum(
            min(cost.widening_seconds for (p, _), cost in measured.items() if p == phase)
            for phase in range(1, last + 1)
        )
        spent = sum(s.steps * growth.costs[s.phase].macs for s in stretches)
        return GrowthPlan(
            groups=_groups(session.model, session.task.example_inputs, growth),
            phases=rows,
            seconds=sum(taken) + events,
            fixed_seconds=fixed,
            macs_share=spent / (session.total_steps * growth.costs[-1].macs),
        )


def simulate_growth(
    recipe: Recipe,
    *,
    phases: int = 4,
    align: int = 16,
    tolerance: float = 0.02,
    seconds: float = 5.0,
    show_progress: bool | None = None,
) -> GrowthSimulation:
    """Measures candidate widths of a recipe's network and chooses a faster schedule of equal cost.

    Args:
        recipe: with a growth method and one batch size; nothing is trained or written.
        phases: most phases of the schedule to choose.
        align: widths on the way are multiples of it.
        tolerance: largest difference of the cost, as a share.
        seconds: of measuring, about.
        show_progress: as for ``plan_growth``.

    Raises:
        RequestError: a recipe without growth, one that cannot be built here, or no such schedule.
    """
    if not isinstance(recipe.batch_size, int):
        raise invalid("batch_size", recipe.batch_size, "one batch size for the whole run")
    with _opened(recipe) as (session, growth), _measuring(show_progress) as report:
        choice = plan_schedule(
            session.model,
            session.task.example_inputs,
            epochs=session.epochs.count,
            steps_per_epoch=session.epochs.length(0),
            phases=phases,
            align=align,
            tolerance=tolerance,
            reference=growth.schedule,
            exclude=growth.exclude,
            train_step=_train_step(session, recipe.batch_size),
            make_optimizer=lambda model: _optimizer(recipe, model),
            seconds=seconds,
            report=report,
        )
    return GrowthSimulation(
        networks=[_network_row(cost) for cost in choice.measured],
        schedules=_schedule_rows(choice),
        section=choice.chosen.section(),
    )


@dataclass(frozen=True)
class _Stretch:
    """Epochs of one phase with one batch size."""

    phase: int
    batch_size: int
    steps: int


@contextmanager
def _opened(recipe: Recipe) -> Iterator[tuple[Session, Growth]]:
    quiet = recipe.model_copy(update={"probes": [], "trackers": [], "compile": False})
    with joined_processes(quiet, Path()) as group:
        session = open_session(quiet, RunFolder(Path()), group, build_task(quiet, group))
        growing = [method for method in session.methods.values() if isinstance(method, Growth)]
        if len(growing) != 1:
            names = [section["name"] for section in recipe.methods]
            raise invalid("methods", names, "one growth among them")
        yield session, growing[0]


@contextmanager
def _measuring(show: bool | None) -> Iterator[Callable[[float], None]]:
    """Shows the share of the measuring that is done."""
    with progress("measuring steps", _MARKS, show=show) as advance:
        reached = 0

        def report(share: float) -> None:
            nonlocal reached
            marks = int(_MARKS * share)
            if marks > reached:
                advance(marks - reached)
                reached = marks

        yield report


def _stretches(session: Session, growth: Growth) -> list[_Stretch]:
    phase_of = [
        sum(epoch >= start for start in growth.starts) - 1 for epoch in range(session.epochs.count)
    ]
    sizes = [session.recipe.batch_size_of(epoch) for epoch in range(session.epochs.count)]
    stretches = []
    numbered = enumerate(zip(phase_of, sizes, strict=True))
    for (phase, size), epochs in itertools.groupby(numbered, key=lambda item: item[1]):
        numbers = [number for number, _ in epochs]
        end = min(session.epochs.start(numbers[-1] + 1), session.total_steps)
        stretches.append(_Stretch(phase, size, end - session.epochs.start(numbers[0])))
    return stretches


def _measured(
    session: Session,
    growth: Growth,
    phases: Sequence[int],
    batch_size: int,
    seconds: float,
    report: Callable[[float], object],
) -> list[StepCost]:
    return measure_steps(
        session.model,
        session.task.example_inputs,
        [{name: of[phase] for name, of in growth.widths.items()} for phase in phases],
        train_step=_train_step(session, batch_size),
        make_optimizer=lambda model: _optimizer(session.recipe, model),
        seconds=seconds,
        report=report,
    )


def _train_step(session: Session, batch_size: int) -> Callable[[nn.Module, Optimizer], object]:
    """A step as the run takes it, without its bookkeeping."""
    train = session.task.train
    indices = epoch_order(len(train), seed=session.recipe.seed, epoch=0)[:batch_size]

    def step(model: nn.Module, optimizer: Optimizer) -> float:
        batch: Batch = session.prepared(train.gather(indices))
        loss, _ = session.loss(model, batch, 1.0)
        compute_gradients(loss, optimizer)
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients).item()
        optimizer.step()
        return norm + loss.item()

    return step


def _optimizer(recipe: Recipe, model: nn.Module) -> Optimizer:
    groups = parameter_groups(
        model, weight_decay=recipe.optimizer.get("weight_decay"), decay_all=recipe.decay_all
    )
    optimizer = components.build("optimizer", recipe.optimizer, "optimizer", params=groups)
    assert isinstance(optimizer, torch.optim.Optimizer)
    return optimizer


def _groups(model: nn.Module, example_inputs: Sequence[torch.Tensor], growth: Growth) -> list[Row]:
    rows: list[Row] = []
    for group in trace_channels(model, example_inputs):
        widths = growth.widths.get(group.name)
        reasons = "; ".join(dict.fromkeys(barrier.reason for barrier in group.barriers))
        stays = reasons or "not asked to"
        listed = str(group.width) if widths is None else " ".join(map(str, widths))
        rows.append(
            {"group": group.name, "widths": listed, "stays because": "" if widths else stays}
        )
    return rows


def _network_row(cost: StepCost) -> Row:
    return {
        "widths": _short(cost.widths.values()),
        "parameters": cost.parameters,
        "MACs": cost.macs,
        "ms a step": 1e3 * cost.seconds,
        "million MACs a ms": 1e-9 * cost.macs / cost.seconds,
    }


def _schedule_rows(choice: ScheduleChoice) -> list[Row]:
    named = {"recipe": choice.reference, "chosen": choice.chosen, "fixed": choice.fixed}
    return [
        {
            "schedule": name,
            "epochs": " ".join(map(str, plan.epochs)),
            "widest group": " ".join(str(max(cost.widths.values())) for cost in plan.costs),
            "MACs": f"{plan.macs / choice.fixed.macs:.1%}",
            "seconds": plan.seconds,
            "time": f"{plan.seconds / choice.fixed.seconds:.1%}",
        }
        for name, plan in named.items()
    ]


def _short(widths: object) -> str:
    """Widths for a table: each that occurs, once, in order."""
    return " ".join(str(width) for width in dict.fromkeys(widths))  # type: ignore[call-overload]
