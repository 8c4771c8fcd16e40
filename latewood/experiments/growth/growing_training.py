"""Training of a network that grows on the way, with its cost in operations and processor time."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from latewood.core import parameter_groups, trace_channels
from latewood.core.modes import evaluated
from latewood.core.schedules import cosine, progress
from latewood.errors import invalid
from latewood.experiments.flop_counted_training import (
    TrainingSetting,
    build,
    measures,
    step_loss,
    step_macs,
)
from latewood.growth import StageRates, Stages, WideningSettings, bake_scales, widen
from latewood.growth.growth_event import event_seed
from latewood.growth.initialisations import Init
from latewood.growth.variance_transfer import Rescale
from latewood.tasks import Batch, Dataset, Task, batch_stream
from latewood.training.fit import fit
from latewood.training.randomness import derive

__all__ = [
    "Growing",
    "Grown",
    "GrowingTraining",
    "best_rate",
    "fractions_of",
    "held_out",
    "stable_then_falling",
    "starts_of",
    "train",
    "train_branches",
    "warmed_cosine",
]


@dataclass(frozen=True)
class Growing:
    """How a network grows while it trains, or that it does not.

    Args:
        fractions: of the full network's channels, phase by phase; one fraction is a fixed network.
        starts: the share of the steps after which each phase begins, 0 first.
        init: what new channels start with (``growth.widen``).
        rescale: what becomes of old weights (``growth.widen``).
        state: what becomes of the optimizer's state of what grows (``growth.WideningSettings``).
        rates: "norm" adapts learning rates by stage; "constant" does not, but gives new channels
            step counts of their own; "none" leaves the optimizer's steps as they are, which costs
            nothing.
        warmup: steps over which the rate of new channels rises.
    """

    fractions: tuple[float, ...] = (1.0,)
    starts: tuple[float, ...] = (0.0,)
    init: Init = "pair"
    rescale: Rescale = "none"
    state: Literal["carry", "zero", "drop"] = "carry"
    rates: Literal["norm", "constant", "none"] = "constant"
    warmup: int = 0

    def __post_init__(self) -> None:
        ascending = list(self.starts) == sorted(set(self.starts)) and self.starts[:1] == (0.0,)
        if len(self.starts) != len(self.fractions) or not ascending or self.starts[-1] >= 1.0:
            raise invalid("starts", self.starts, "ascending shares below 1, 0 first, one a phase")


@dataclass(frozen=True)
class Grown:
    """What a training came to.

    Args:
        score: the task's headline on the validation samples.
        loss: mean loss there.
        macs: multiply-accumulates of the training; a backward pass counts as two forward passes.
        seconds: processor time of the steps and the growth events.
        jump: the largest change of the loss at an event, in absolute value; 0 without events.
    """

    score: float
    loss: float
    macs: int
    seconds: float
    jump: float


class _Part:
    """Some samples of a data set."""

    def __init__(self, dataset: Dataset, indices: Tensor) -> None:
        self._dataset, self._indices = dataset, indices

    def __len__(self) -> int:
        return len(self._indices)

    def gather(self, indices: Tensor) -> Batch:
        """Those at ``indices`` (int64, n) of the part."""
        return self._dataset.gather(self._indices[indices])


def held_out(task: Task, samples: int) -> Task:
    """The task with its last training samples as validation samples, to choose settings on."""
    order = torch.arange(len(task.train))
    return replace(
        task,
        train=_Part(task.train, order[:-samples]),
        validation=_Part(task.train, order[-samples:]),
    )


def fractions_of(first: float, phases: int) -> tuple[float, ...]:
    """Fractions from the first to 1 that grow by the same factor in every phase."""
    return tuple(first ** (1 - phase / (phases - 1)) for phase in range(phases))


def starts_of(fractions: tuple[float, ...]) -> tuple[float, ...]:
    """Where phases begin whose lengths are in proportion to the fractions of their networks."""
    total = sum(fractions)
    return tuple(sum(fractions[:phase]) / total for phase in range(len(fractions)))


def warmed_cosine(step: int, total: int, warmup: int) -> float:
    """A learning rate's factor: a straight rise over ``warmup`` steps, then half a cosine wave."""
    if step < warmup:
        return (step + 1) / warmup
    return cosine()(progress(step - warmup, max(1, total - warmup)))


def stable_then_falling(step: int, total: int, warmup: int, branch: int) -> float:
    """A learning rate's factor: a rise over ``warmup`` steps, 1, from ``branch`` on a fall to 0."""
    rising = min(1.0, (step + 1) / warmup) if warmup else 1.0
    return rising * min(1.0, (total - step) / max(1, total - branch))


def train(
    setting: TrainingSetting,
    growing: Growing,
    *,
    steps: int,
    seed: int,
    rate: float = 1.0,
    rate_warmup: int = 0,
) -> Grown:
    """Trains a network, fixed or growing, with rates that fall along a cosine.

    Args:
        setting: data, networks, optimizer, batch size; its epochs do not count here.
        growing: how it grows.
        steps: length of the training.
        seed: of weights, new channels and the order of the data.
        rate: factor on the optimizer's learning rates.
        rate_warmup: steps over which the learning rate rises at first.
    """
    return GrowingTraining(setting, growing, steps, seed).run(rate, rate_warmup)


def train_branches(
    setting: TrainingSetting,
    growing: Growing,
    *,
    lengths: Sequence[int],
    falling: float,
    seed: int,
    rate: float = 1.0,
    rate_warmup: int = 0,
) -> dict[int, Grown]:
    """Trainings of several lengths that share their steps at a constant rate.

    Rates that fall along a cosine know the end from the first step on, so that every length is a
    training of its own. Here the rate stays as it is; a copy leaves when the last share of its
    length begins, and only there do its rates fall, in a straight line to 0. Each length so has the
    result of a finished training.

    Args:
        setting: as for ``train``.
        growing: how the network grows; a growing network has one length.
        lengths: numbers of steps.
        falling: the last share of each length, over which rates fall.
        seed: as for ``train``.
        rate: as for ``train``.
        rate_warmup: as for ``train``.

    Returns:
        By length, what its training came to; ``seconds`` and ``macs`` count shared steps for each.

    Raises:
        RequestError: a growing network with several lengths, or no share between 0 and 1.
    """
    if not 0.0 < falling < 1.0:
        raise invalid("falling", falling, "between 0 and 1")
    if not lengths or (len(growing.fractions) > 1 and len(set(lengths)) > 1):
        raise invalid("lengths", list(lengths), "one length or more; one for a growing network")
    training = GrowingTraining(setting, growing, max(lengths), seed)
    return training.run_branches(lengths, falling, rate, rate_warmup)


def best_rate(
    setting: TrainingSetting,
    growing: Growing,
    factors: Sequence[float],
    *,
    steps: int,
    seed: int,
    samples: int,
    rate_warmup: int = 0,
    falling: float | None = None,
) -> float:
    """The factor on the learning rates with the least loss on training samples that are held out.

    Args:
        setting: as for ``train``.
        growing: how the network grows.
        factors: to choose from.
        steps: length of each training.
        seed: one that judges nothing.
        samples: training samples to hold out.
        rate_warmup: as for ``train``.
        falling: as for ``train_branches``; None is a cosine.
    """
    tuned = replace(setting, task=held_out(setting.task, samples))

    def trained(factor: float) -> Grown:
        training = GrowingTraining(tuned, growing, steps, seed)
        if falling is None:
            return training.run(factor, rate_warmup)
        return training.run_branches([steps], falling, factor, rate_warmup)[steps]

    losses = {factor: trained(factor).loss for factor in factors}
    # A loss that is not finite is none.
    return min(factors, key=lambda factor: (not math.isfinite(losses[factor]), losses[factor]))


class GrowingTraining:
    """One training under way.

    Args:
        setting: as for ``train``.
        growing: as for ``train``.
        steps: as for ``train``.
        seed: as for ``train``.
    """

    def __init__(self, setting: TrainingSetting, growing: Growing, steps: int, seed: int) -> None:
        self.setting, self.growing, self.steps, self.seed = setting, growing, steps, seed
        self.model = build(setting, seed, growing.fractions[0])
        self.stages = Stages()
        self.rates: StageRates | None = None
        self.widths = [self._widths(fraction) for fraction in growing.fractions]
        self.starts = {round(at * steps): phase for phase, at in enumerate(growing.starts) if phase}
        if len(self.starts) < len(growing.starts) - 1 or 0 in self.starts:
            raise invalid("steps", steps, f"enough for {len(growing.starts)} phases")
        self.seconds = 0.0
        self.paused = 0.0
        self.jump = 0.0
        self.spent = 0
        self.step_macs = step_macs(setting, self.model)
        watched = min(512, len(setting.task.validation))
        self.watched = setting.task.validation.gather(torch.arange(watched))

    def run(self, rate: float, rate_warmup: int) -> Grown:
        """Trains and scores; see ``train``."""
        optimizer = self.optimizer(rate)
        self._advance(
            optimizer, 0, self.steps, lambda step: warmed_cosine(step, self.steps, rate_warmup)
        )
        return self._finished()

    def run_branches(
        self, lengths: Sequence[int], falling: float, rate: float, rate_warmup: int
    ) -> dict[int, Grown]:
        """Trains at a constant rate, and ends a copy for each length; see ``train_branches``."""
        optimizer, done, trained = self.optimizer(rate), 0, {}
        for length in sorted(set(lengths)):
            branch = round((1 - falling) * length)

            def factor(step: int, length: int = length, branch: int = branch) -> float:
                return stable_then_falling(step, length, rate_warmup, branch)

            self._advance(optimizer, done, branch, factor)
            done = branch
            ending, its_optimizer = self, optimizer
            if length < self.steps:
                # Together, so that the optimizer's copy holds the parameters of the model's.
                ending = copy.copy(self)
                ending.model, its_optimizer = copy.deepcopy((self.model, optimizer))
            ending._advance(its_optimizer, branch, length, factor)
            trained[length] = ending._finished()
        return trained

    def _advance(
        self,
        optimizer: torch.optim.Optimizer,
        first: int,
        end: int,
        factor: Callable[[int], float],
    ) -> None:
        """Takes the steps from ``first`` up to ``end``, with that factor on the learning rate."""
        setting, paused, start = self.setting, self.paused, time.process_time()
        fit(
            self.model,
            self._batches(optimizer, first, end),
            lambda model, numbered: step_loss(
                setting.task, model, numbered[1], derive(self.seed, "step", numbered[0])
            ),
            optimizer,
            rate_factor=lambda taken: factor(first + taken),
            clip_norm=setting.clip_norm,
        )
        self.seconds += time.process_time() - start - (self.paused - paused)

    def _finished(self) -> Grown:
        if self.rates is not None:
            self.rates.detach()
        bake_scales(self.model)
        measured = measures(self.setting.task, self.model)
        return Grown(
            score=measured[self.setting.task.headline],
            loss=measured["loss"],
            macs=self.spent,
            seconds=self.seconds,
            jump=self.jump,
        )

    def optimizer(self, rate: float) -> torch.optim.Optimizer:
        """The optimizer, with rates by stage where they are asked for; the model in training mode.

        Args:
            rate: factor on its learning rates.
        """
        setting, growing = self.setting, self.growing
        optimizer = setting.optimizer(
            parameter_groups(self.model, [], weight_decay=setting.weight_decay)
        )
        for group in optimizer.param_groups:
            group["lr"] *= rate
        if growing.rates != "none" and len(growing.fractions) > 1:
            self.rates = StageRates(
                self.model, self.stages, rule=growing.rates, warmup=growing.warmup
            )
            self.rates.attach(optimizer)
        self.model.train()
        return optimizer

    def _batches(
        self, optimizer: torch.optim.Optimizer, first: int, end: int
    ) -> Iterator[tuple[int, Batch]]:
        """The numbered batches; the network grows before the first of a phase."""
        stream = batch_stream(
            self.setting.task.train,
            batch_size=self.setting.batch_size,
            seed=self.seed,
            start=first,
            steps=end - first,
            drop_last=True,
        )
        for step, batch in enumerate(stream, first):
            if step in self.starts:
                self.grow(self.starts[step], optimizer, batch)
            self.spent += self.step_macs
            yield step, batch

    def _widths(self, fraction: float) -> Mapping[str, int]:
        """Widths of all channel groups of a network of that fraction."""
        examples = self.setting.task.example_inputs
        plan = trace_channels(build(self.setting, 0, fraction), examples)
        return {group.name: group.width for group in plan}

    def grow(self, phase: int, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
        """Widens the network to the width of a phase, and notes by how much the loss moves.

        Args:
            phase: from 1.
            optimizer: of the training.
            batch: the next one, which GradMax looks at.
        """
        with self._untimed():
            before = self._watched_loss()
        optimizer.zero_grad()
        old, new = self.widths[phase - 1 : phase + 1]
        growing = self.growing
        self.model.train()

        def loss() -> Tensor:
            return step_loss(self.setting.task, self.model, batch, derive(self.seed, "gradmax"))

        widen(
            self.model,
            self.setting.task.example_inputs,
            {name: width for name, width in new.items() if width > old[name]},
            optimizers=optimizer,
            init=growing.init,
            rescale=growing.rescale,
            seed=event_seed(self.seed, phase),
            stages=self.stages,
            settings=WideningSettings(
                state=growing.state, loss=loss if growing.init == "gradmax" else None
            ),
        )
        with self._untimed():
            self.jump = max(self.jump, abs(self._watched_loss() - before))
            self.step_macs = step_macs(self.setting, self.model)

    @torch.no_grad()
    def _watched_loss(self) -> float:
        with evaluated(self.model):
            measured = self.setting.task.objective.evaluate(
                self.model, self.watched, torch.Generator()
            )
        return measured["loss"].item()

    @contextmanager
    def _untimed(self) -> Iterator[None]:
        start = time.process_time()
        yield
        self.paused += time.process_time() - start
