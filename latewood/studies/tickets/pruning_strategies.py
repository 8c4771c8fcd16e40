"""Ways to find a small network, each as the rows it adds to the table of a search."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from latewood.core.masks import Masks, keep_largest, shuffled_masks
from latewood.errors import WorkError
from latewood.sparsity import (
    ContinuousSparsification,
    GradualMagnitudePruning,
    Ticket,
    evaluate_masks,
    prune_smallest,
    snapshot,
)
from latewood.studies.tickets.trial import FinishedTraining, TicketTrainer, score
from latewood.training.evaluation import recalibrate, recalibration_batches
from latewood.training.randomness import derive

__all__ = ["ALONE", "MATCHED", "Dense", "FoundTicket", "continuous", "dense", "supermask"]

Entry = dict[str, Any]


@dataclass(frozen=True)
class Dense:
    """What baselines start from.

    Args:
        early: the network at the rewind point.
        trained: the network at the end.
        weights: its weights that may be pruned.
        headline: the task's measure.
        higher_is_better: its direction.
    """

    early: dict[str, Tensor]
    trained: dict[str, Tensor]
    weights: dict[str, Tensor]
    headline: str
    higher_is_better: bool


@dataclass(frozen=True)
class FoundTicket:
    """A ticket of continuous sparsification, which baselines are matched to.

    Args:
        entry: its row's seed, initial logit and round.
        ticket: masks and early weights.
    """

    entry: Entry
    ticket: Ticket

    @property
    def kept(self) -> int:
        """How many weights it keeps."""
        return sum(int(mask.sum()) for mask in self.ticket.masks.values())


def dense(trainer: TicketTrainer) -> tuple[list[Entry], Dense]:
    """The whole network, before and after one training."""
    untrained = _entry(trainer, "untrained", 0, trainer.untrained(), 1.0, 0.0)
    done = trainer.train()
    trained = snapshot(done.session.model)
    weights = {name: trained[name] for name in trainer.prunable(done.session.model)}
    task = trainer.task
    start = Dense(done.early, trained, weights, task.headline, task.higher_is_better)
    return [untrained, _entry(trainer, "dense", 0, done.score, 1.0, 0.0)], start


def continuous(
    trainer: TicketTrainer, initial_logit: float
) -> tuple[list[Entry], list[FoundTicket]]:
    """Continuous sparsification: the network with its hard masks, and the ticket of each round."""
    protocol = trainer.protocol
    section = {
        "name": "continuous_sparsification",
        "initial_logit": initial_logit,
        "rounds": protocol.rounds,
        **_selection(trainer),
        **protocol.method,
    }
    done = trainer.train(method=section, rounds=protocol.rounds)
    (method,) = done.session.methods.values()
    assert isinstance(method, ContinuousSparsification)
    read = _read(trainer, done, method)
    per_round = done.seconds / protocol.rounds
    density = method.metrics()["density"]
    key = {"initial_logit": initial_logit, "round": protocol.rounds}
    entries = [
        _entry(trainer, "hard", protocol.rounds, read["recalibrated"], density, done.seconds)
        | key
        | read
    ]
    tickets = []
    for index, _ in enumerate(method.tickets):
        ticket = Ticket.of(method, done.early, finished_round=index)
        key = {"initial_logit": initial_logit, "round": index + 1}
        trained = trainer.train(ticket=ticket)
        cost = (index + 1) * per_round
        entry = _entry(trainer, "ticket", index + 1, trained.score, ticket.density, cost)
        entries.append(entry | key)
        tickets.append(FoundTicket(key, ticket))
    return entries, tickets


def supermask(trainer: TicketTrainer, initial_logit: float) -> tuple[list[Entry], None]:
    """Masks learned on weights that keep their initial values."""
    section = {
        "name": "continuous_sparsification",
        "initial_logit": initial_logit,
        **_selection(trainer),
        **trainer.protocol.method,
        "penalty_weight": 0.0,
        "mask_lr": trainer.protocol.supermask_lr,
        "freeze_weights": True,
    }
    done = trainer.train(method=section)
    (method,) = done.session.methods.values()
    assert isinstance(method, ContinuousSparsification)
    read = _read(trainer, done, method)
    density = method.metrics()["density"]
    entry = _entry(trainer, "supermask", 1, read["recalibrated"], density, done.seconds)
    return [entry | {"initial_logit": initial_logit} | read], None


def shuffled(trainer: TicketTrainer, start: Dense, reference: FoundTicket) -> Entry:
    """The ticket's counts per layer at random places, from the same early weights."""
    seed = derive(trainer.seed, "shuffled masks")
    masks = shuffled_masks(reference.ticket.masks, seed=seed)
    done = trainer.train(ticket=Ticket(masks, reference.ticket.snapshot, {}))
    return _entry(trainer, "shuffled", 0, done.score, reference.ticket.density, 0.0)


def magnitude(trainer: TicketTrainer, start: Dense, reference: FoundTicket) -> Entry:
    """One round of magnitude pruning: the largest weights of the dense network, rewound."""
    masks = keep_largest(start.weights, reference.kept)
    done = trainer.train(ticket=Ticket(masks, start.early, {}))
    return _entry(trainer, "magnitude", 1, done.score, reference.ticket.density, 0.0)


def one_shot(trainer: TicketTrainer, start: Dense, reference: FoundTicket) -> Entry:
    """The largest weights of the dense network, trained on as long again."""
    masks = keep_largest(start.weights, reference.kept)
    done = trainer.train(ticket=Ticket(masks, start.trained, {}))
    return _entry(trainer, "one_shot", 1, done.score, reference.ticket.density, 0.0)


def gradual(trainer: TicketTrainer, start: Dense, reference: FoundTicket) -> Entry:
    """Gradual magnitude pruning to the ticket's density, in one training.

    Raises:
        WorkError: the ticket kept no weight.
    """
    if reference.kept == 0:
        raise WorkError(
            f"seed {trainer.seed}, initial logit {reference.entry['initial_logit']:g}, round "
            f"{reference.entry['round']}: the ticket kept no weight, so that gradual pruning "
            "cannot be matched to it; a higher initial logit or more epochs keep some"
        )
    section = {
        "name": "gradual_magnitude_pruning",
        "density": reference.ticket.density,
        **_selection(trainer),
    }
    done = trainer.train(method=section)
    (method,) = done.session.methods.values()
    assert isinstance(method, GradualMagnitudePruning)
    recalibrate(done.session, done.session.model)
    density = method.metrics()["density"]
    return _entry(trainer, "gradual", 1, done.score, density, done.seconds)


def iterative(
    trainer: TicketTrainer,
    start: Dense,
    name: str,
    *,
    layerwise: bool = False,
    rewinding: bool = True,
) -> list[Entry]:
    """Magnitude pruning round by round; each round's training is that of the ticket before it."""
    weights = start.weights
    masks: Masks | None = None
    entries: list[Entry] = []
    seconds = 0.0
    values = start.trained
    for number in range(1, trainer.protocol.iterations + 1):
        masks = prune_smallest(
            weights, fraction=trainer.protocol.fraction, present=masks, layerwise=layerwise
        )
        ticket = Ticket(masks, start.early if rewinding else values, {})
        done = trainer.train(ticket=ticket)
        entry = _entry(trainer, name, number, done.score, ticket.density, seconds)
        entries.append(entry | {"round": number})
        seconds += done.seconds
        values = snapshot(done.session.model)
        weights = {name: values[name] for name in masks}
    return entries


MATCHED: Mapping[str, Callable[[TicketTrainer, Dense, FoundTicket], Entry]] = {
    "shuffled": shuffled,
    "magnitude": magnitude,
    "one_shot": one_shot,
    "gradual": gradual,
}
"""Baselines at the density of a ticket."""

ALONE: Mapping[str, Mapping[str, bool]] = {
    "iterative": {},
    "iterative_layerwise": {"layerwise": True},
    "iterative_continued": {"rewinding": False},
}
"""Forms of iterative magnitude pruning, whose densities follow from the rounds."""


def _read(
    trainer: TicketTrainer, done: FinishedTraining, method: ContinuousSparsification
) -> Entry:
    session = done.session
    noise = torch.Generator(session.processes.device.type)
    evaluations = evaluate_masks(
        method,
        lambda model: score(session, model),
        recalibration_batches(session),
        forward=lambda model, batch: session.task.objective.loss(
            model, batch, noise.manual_seed(derive(trainer.seed, "recalibrate"))
        ),
    )
    return {
        "soft": evaluations.soft,
        "hard": evaluations.hard,
        "recalibrated": evaluations.recalibrated,
        "undecided": evaluations.undecided,
    }


def _selection(trainer: TicketTrainer) -> Entry:
    exclude = trainer.protocol.exclude
    chosen: Entry = {"include": list(trainer.protocol.include)}
    return chosen if exclude is None else chosen | {"exclude": list(exclude)}


def _entry(
    trainer: TicketTrainer, method: str, rounds: int, value: float, density: float, seconds: float
) -> Entry:
    return {
        "method": method,
        "seed": trainer.seed,
        "initial_logit": None,
        "round": None,
        "search_epochs": rounds * trainer.protocol.epochs,
        "density": density,
        trainer.task.headline: value,
        "search_seconds": round(seconds, 3),
    }
