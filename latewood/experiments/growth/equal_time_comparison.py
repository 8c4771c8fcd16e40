"""Fixed and growing networks that train for equal processor time, with counted operations."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch

from latewood.core.timing import least_times
from latewood.experiments.flop_counted_training import (
    TrainingSetting,
    build,
    step_loss,
    step_macs,
)
from latewood.experiments.growth.growing_training import (
    Growing,
    GrowingTraining,
    Grown,
    best_rate,
    train,
    train_branches,
)
from latewood.experiments.registry import Results, Workspace, replicate
from latewood.tasks import batch_stream
from latewood.training.fit import compute_gradients

__all__ = ["Budget", "compare", "crossing", "step_seconds"]

HALF, FULL = Growing((0.5,)), Growing()
LONGER = 4 / 3
"""Of a fixed network's time: a grown one that is as good has saved a quarter."""
TUNING_SEED = 100


@dataclass(frozen=True)
class Budget:
    """How long the trainings of a comparison are.

    Args:
        seconds: of processor time that the growing network's training takes.
        tuning: seconds of each training on which rates are chosen; 0 takes the middle one.
        factors: on the learning rate, to choose from.
        curve: shorter budgets, of the two fixed networks with one seed.
        seeds: how many.
        growth_at: the share of the growing network's seconds at half the width.
        rate_warmup: steps over which learning rates rise at first.
        held_out: training samples to choose rates on.
        falling: None gives every training rates that fall along a cosine. A share makes trainings
            of one network share their steps at a constant rate, until rates fall over that share of
            each length (``train_branches``): more lengths, and all seeds in them, for little time.
    """

    seconds: float
    tuning: float
    factors: tuple[float, ...]
    curve: tuple[float, ...]
    seeds: int
    growth_at: float
    rate_warmup: int
    held_out: int
    falling: float | None = None


def step_seconds(setting: TrainingSetting, growing: Growing, *, seconds: float) -> dict[str, float]:
    """Processor time of a training step: least times, in turns.

    Args:
        setting: networks, data and optimizer.
        growing: from half of the width to all of it.
        seconds: of measuring, about.

    Returns:
        Seconds at "half" and at "full" width, and of the network that has "grown" to it, whose
        learning rates may go by stage.
    """
    batch = next(
        iter(batch_stream(setting.task.train, batch_size=setting.batch_size, seed=0, steps=1))
    )

    def step_of(way: Growing) -> Callable[[], object]:
        training = GrowingTraining(setting, way, 2, 0)
        optimizer, model = training.optimizer(1e-6), training.model

        def step() -> None:
            compute_gradients(step_loss(setting.task, model, batch, 0), optimizer)
            if setting.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), setting.clip_norm)
            optimizer.step()

        step()
        if len(way.fractions) > 1:
            training.grow(1, optimizer, batch)
        return step

    times = least_times(
        {"half": step_of(HALF), "full": step_of(FULL), "grown": step_of(growing)},
        torch.device("cpu"),
        seconds=seconds,
        clock=time.process_time,
        inference=False,
    )
    return {name: 1e-6 * least for name, least in times.items()}


def crossing(budgets: Mapping[float, tuple[float, float]]) -> float:
    """The budget from which the second of two falling losses is the lower one.

    Straight lines in the logarithm of the budget through the last two budgets on both sides of the
    change, or through the last two there are.

    Args:
        budgets: by budget, both losses; two budgets or more.

    Returns:
        The budget; inf if the second gains nothing on the first, 0 if it is ahead already at the
        least budget.
    """
    points = sorted(budgets.items())
    gaps = [(math.log(budget), first - second) for budget, (first, second) in points]
    if all(gap > 0 for _, gap in gaps):
        return 0.0
    ahead = next((n for n, (_, gap) in enumerate(gaps) if n and gap > 0), len(gaps) - 1)
    (earlier, behind), (later, before) = gaps[ahead - 1], gaps[ahead]
    if before <= behind:
        return math.inf
    return math.exp(earlier - behind * (later - earlier) / (before - behind))


def compare(
    setting: TrainingSetting, budget: Budget, growing: Growing, workspace: Workspace
) -> Results:
    """Fixed and growing networks at the budget, and the fixed ones at shorter ones; one thread.

    Args:
        setting: networks, data and optimizer.
        budget: how long the trainings are, and how rates are chosen.
        growing: how the network widens from half to all of it.
        workspace: shows the progress.

    Returns:
        For "grown", "half", "full", "full, equal macs" and "full, a third longer": the loss, and
        with " score", " seconds" and " macs" behind the name what else there is; the least time of
        a step ("half step"); and where the full width overtakes half of it ("crossing").
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _Comparison(setting, budget, growing).run(workspace)
    finally:
        torch.set_num_threads(before)


class _Comparison:
    """The networks at one budget, with their steps counted from measured times."""

    def __init__(self, setting: TrainingSetting, budget: Budget, growing: Growing) -> None:
        self.setting, self.budget = setting, budget
        # Enough to warm up and to time; the rest does not depend on the budget.
        doubling = replace(growing, fractions=(0.5, 1.0), starts=(0.0, 0.5))
        self.cost = step_seconds(setting, doubling, seconds=min(4.0, budget.seconds / 4))
        narrow = budget.growth_at * budget.seconds / self.cost["half"]
        wide = (1 - budget.growth_at) * budget.seconds / self.cost["grown"]
        self.grown_steps = max(2, round(narrow + wide))
        least = 1 / self.grown_steps
        narrow_fraction = min(max(narrow / (narrow + wide), least), 1 - least)
        self.growing = replace(doubling, starts=(0.0, narrow_fraction))
        macs = {f: step_macs(setting, build(setting, 0, f)) for f in (0.5, 1.0)}
        self.equal_macs = narrow_fraction * macs[0.5] / macs[1.0] + 1 - narrow_fraction
        self.rates: dict[str, float] = {}

    def run(self, workspace: Workspace) -> Results:
        budget = self.budget
        ways = {"half": HALF, "full": FULL, "grown": self.growing}
        for name, way in ways.items():
            self.rates[name] = budget.factors[len(budget.factors) // 2]
            if budget.tuning:
                self.rates[name] = best_rate(
                    self.setting,
                    way,
                    budget.factors,
                    steps=self._steps(name, budget.tuning),
                    seed=TUNING_SEED,
                    samples=budget.held_out,
                    rate_warmup=budget.rate_warmup,
                    falling=budget.falling,
                )
        shorter = {
            seconds: self._shorter(seconds)
            for seconds in workspace.track(budget.curve, "shorter budgets")
            if budget.falling is None
        }
        results = replicate(self._measure, range(budget.seeds), workspace)
        measurements = {**results.measurements, **_columns(shorter)}
        if budget.curve:
            ahead_from = crossing(self._curves(Results(measurements)))
            if math.isfinite(ahead_from):
                measurements["crossing"] = [ahead_from]
        measurements |= {f"{name} step": [seconds] for name, seconds in self.cost.items()}
        return Results(
            measurements,
            {
                **results.settings,
                "seconds": budget.seconds,
                "width doubled after the share of the steps": round(self.growing.starts[1], 3),
                "factors on the learning rate": self.rates,
                "factors tried": list(budget.factors),
                "steps of the grown network": self.grown_steps,
                "steps of the full one in the same time": self._steps("full", budget.seconds),
                "steps of the half one": self._steps("half", budget.seconds),
                "threads": 1,
            },
        )

    def _steps(self, name: str, seconds: float) -> int:
        if name == "grown":
            return max(2, round(self.grown_steps * seconds / self.budget.seconds))
        return max(2, round(seconds / self.cost[name]))

    def _curves(self, results: Results) -> dict[float, tuple[float, float]]:
        """The losses of half and full width by budget."""
        budget = self.budget
        curves = {
            seconds: (
                results.mean(_at("half", seconds)),
                results.mean(_at("full", seconds)),
            )
            for seconds in budget.curve
        }
        curves[budget.seconds] = results.mean("half"), results.mean("full")
        if budget.falling is not None:
            longer = results.mean("half, a third longer"), results.mean("full, a third longer")
            curves[LONGER * budget.seconds] = longer
        return curves

    def _shorter(self, seconds: float) -> tuple[float, float]:
        half, full = (
            self._train(name, {name: self._steps(name, seconds)}, TUNING_SEED)[name].loss
            for name in ("half", "full")
        )
        return half, full

    def _train(self, name: str, lengths: Mapping[str, int], seed: int) -> dict[str, Grown]:
        """Trains a network for several numbers of steps, each under the name it shall have."""
        way = {"half": HALF, "full": FULL, "grown": self.growing}[name]
        budget, rate = self.budget, self.rates[name]
        if budget.falling is None:
            return {
                label: train(
                    self.setting,
                    way,
                    steps=steps,
                    seed=seed,
                    rate=rate,
                    rate_warmup=budget.rate_warmup,
                )
                for label, steps in lengths.items()
            }
        branches = train_branches(
            self.setting,
            way,
            lengths=list(lengths.values()),
            falling=budget.falling,
            seed=seed,
            rate=rate,
            rate_warmup=budget.rate_warmup,
        )
        return {label: branches[steps] for label, steps in lengths.items()}

    def _lengths(self, name: str) -> dict[str, int]:
        """What is trained of a network, by its name in the results: numbers of steps."""
        seconds, shares = self.budget.seconds, self.budget.falling is not None
        lengths = {name: self._steps(name, seconds)}
        if name == "full":
            lengths["full, equal macs"] = max(2, round(self.equal_macs * self.grown_steps))
        if name == "full" or (name == "half" and shares):
            lengths[f"{name}, a third longer"] = self._steps(name, LONGER * seconds)
        if name != "grown" and shares:
            lengths |= {_at(name, short): self._steps(name, short) for short in self.budget.curve}
        return lengths

    def _measure(self, seed: int) -> dict[str, float]:
        trained: dict[str, Grown] = {}
        for name in ("grown", "half", "full"):
            trained |= self._train(name, self._lengths(name), seed)
        measured: dict[str, float] = {}
        for name, result in trained.items():
            measured[name] = result.loss
            if not name.endswith(" s"):
                measured |= {
                    f"{name} score": result.score,
                    f"{name} seconds": result.seconds,
                    f"{name} macs": result.macs / trained["full"].macs,
                }
        return measured | {"jump": trained["grown"].jump}


def _at(name: str, seconds: float) -> str:
    return f"{name}, {seconds:g} s"


def _columns(shorter: Mapping[float, tuple[float, float]]) -> dict[str, list[float]]:
    columns: dict[str, list[float]] = {}
    for seconds, (half, full) in shorter.items():
        columns |= {_at("half", seconds): [half], _at("full", seconds): [full]}
    return columns
