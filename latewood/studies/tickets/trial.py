"""One training of the ticket search: from given weights, under given masks or a method."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from latewood.core.schedules import Schedule
from latewood.core.threads import threads as limited
from latewood.errors import RequestError
from latewood.sparsity import Ticket, maskable, snapshot
from latewood.tasks import Task
from latewood.training.evaluation import evaluate
from latewood.training.loop import train_steps
from latewood.training.processes import Processes
from latewood.training.recipe import Recipe
from latewood.training.run_context import build_task, joined_processes
from latewood.training.run_folder import RunFolder
from latewood.training.session import Session
from latewood.training.session_builder import open_session

__all__ = ["TicketTrainer", "Protocol", "FinishedTraining", "score", "ticket_trainer"]


@dataclass(frozen=True)
class Protocol:
    """What all trainings of a search have in common.

    Args:
        recipe: task, model, optimizer, schedule and epochs of one training; no methods.
        rewind_epoch: (k) tickets start from the weights at the start of this epoch.
        include: patterns of the weights that may be pruned.
        exclude: patterns of the weights that may not.
        rounds: of continuous sparsification, each as long as one training.
        method: further arguments of continuous sparsification.
        supermask_lr: learning rate of the logits where the weights are frozen.
        iterations: rounds of iterative magnitude pruning.
        fraction: what each of these removes.
        folder: where failures are recorded and tickets are saved.
        threads: of each training.
    """

    recipe: Recipe
    rewind_epoch: int
    include: tuple[str, ...]
    exclude: tuple[str, ...] | None
    rounds: int
    method: Mapping[str, Any]
    supermask_lr: float
    iterations: int
    fraction: float
    folder: Path
    threads: int

    @property
    def epochs(self) -> int:
        """Epochs of one training."""
        return self.recipe.epochs or 0


@dataclass(frozen=True)
class FinishedTraining:
    """The end of one training.

    Args:
        session: with the model, its methods not finalized.
        early: the model at the rewind point, plain; {} if the training stopped before it.
        seconds: wall-clock time of the steps.
    """

    session: Session
    early: dict[str, Tensor]
    seconds: float

    @property
    def score(self) -> float:
        """The headline measure of the model as it is."""
        return score(self.session, self.session.model)


@dataclass
class TicketTrainer:
    """Trains, always from the same initial weights and in the same order of the data.

    Args:
        protocol: of the search.
        seed: of the initial weights, the order and all other randomness.
        group: the one process.
        task: what is learned.
    """

    protocol: Protocol
    seed: int
    group: Processes
    task: Task

    def train(
        self,
        *,
        ticket: Ticket | None = None,
        method: Mapping[str, Any] | None = None,
        rounds: int = 1,
    ) -> FinishedTraining:
        """One training, or several rounds of it with the learning rate started anew in each.

        Args:
            ticket: rewind to it and keep to its masks.
            method: section of a recipe; built on the model.
            rounds: how many times the schedule runs.

        Raises:
            WorkError: the loss was not finite.
        """
        session = self._session([dict(method)] if method else [], rounds)
        session.schedule = _repeated(session.schedule, rounds, session.total_steps)
        if ticket is not None:
            ticket.rewind(session.model)
        early: dict[str, Tensor] = {}
        rewind_step = session.epochs.start(self.protocol.rewind_epoch)

        def keep_early(session: Session) -> None:
            if session.step == rewind_step:
                early.update(snapshot(session.model))

        start = time.monotonic()
        keep_early(session)
        train_steps(session, [keep_early], lambda: False)
        return FinishedTraining(session, early, time.monotonic() - start)

    def untrained(self) -> float:
        """The headline measure of the initial network."""
        session = self._session([], 1)
        return score(session, session.model)

    def prunable(self, model: nn.Module) -> list[str]:
        """The names of the weights that may be pruned, in the order of a model without masks."""
        protocol = self.protocol
        return [weight.name for weight in maskable(model, protocol.include, protocol.exclude)]

    def _session(self, methods: list[dict[str, Any]], rounds: int) -> Session:
        changes = {"seed": self.seed, "methods": methods, "epochs": self.protocol.epochs * rounds}
        recipe = self.protocol.recipe.model_copy(update=changes)
        return open_session(recipe, RunFolder(self.protocol.folder), self.group, self.task)


@contextmanager
def ticket_trainer(protocol: Protocol, seed: int) -> Iterator[TicketTrainer]:
    """What trains with one seed; the caller's generators and threads stay as they were."""
    recipe = protocol.recipe.model_copy(update={"trackers": []})
    with limited(protocol.threads), joined_processes(recipe, protocol.folder) as group:
        if group.count > 1:
            raise RequestError(
                "search_tickets: got several processes of a launcher; expected one, with jobs= for "
                "several trainings at the same time"
            )
        yield TicketTrainer(protocol, seed, group, build_task(recipe, group, seed))


def score(session: Session, model: nn.Module) -> float:
    """The task's headline measure on its validation samples."""
    return evaluate(session, model)[session.task.headline]


def _repeated(schedule: Schedule, rounds: int, total_steps: int) -> Schedule:
    """The schedule run through once per round."""
    if rounds == 1:
        return schedule
    steps = total_steps // rounds

    def value_at(at: float) -> float:
        # In whole steps: a fraction of the run may fall just short of the start of a round.
        done = math.floor(at * total_steps + 0.5)
        return schedule(1.0 if done >= total_steps else done % steps / steps)

    return value_at
