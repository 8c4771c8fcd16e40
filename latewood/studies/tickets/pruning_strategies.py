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
from latewood.studies.tickets.trial import Bench, Trained, score
from latewood.training.evaluation import recalibrate, recalibration_batches
from latewood.training.randomness import derive

__all__ = ["ALONE", "MATCHED", "Dense", "Found", "continuous", "dense", "supermask"]

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
class Found:
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


def dense(bench: Bench) -> tuple[list[Entry], Dense]:
    """The whole network, before and after one training."""
    untrained = _entry(bench, "untrained", 0, bench.untrained(), 1.0, 0.0)
    done = bench.train()
    trained = snapshot(done.session.model)
    weights = {name: trained[name] for name in bench.prunable(done.session.model)}
    task = bench.task
    start = Dense(done.early, trained, weights, task.headline, task.higher_is_better)
    return [untrained, _entry(bench, "dense", 0, done.score, 1.0, 0.0)], start


def continuous(bench: Bench, initial_logit: float) -> tuple[list[Entry], list[Found]]:
    """Continuous sparsification: the network with its hard masks, and the ticket of each round."""
    protocol = bench.protocol
    section = {
        "name": "continuous_sparsification",
        "initial_logit": initial_logit,
        "rounds": protocol.rounds,
        **_selection(bench),
        **protocol.method,
    }
    done = bench.train(method=section, rounds=protocol.rounds)
    (method,) = done.session.methods.values()
    assert isinstance(method, ContinuousSparsification)
    read = _read(bench, done, method)
    per_round = done.seconds / protocol.rounds
    density = method.metrics()["density"]
    key = {"initial_logit": initial_logit, "round": protocol.rounds}
    entries = [
        _entry(bench, "hard", protocol.rounds, read["recalibrated"], density, done.seconds)
        | key
        | read
    ]
    found = []
    for index, _ in enumerate(method.tickets):
        ticket = Ticket.of(method, done.early, finished_round=index)
        key = {"initial_logit": initial_logit, "round": index + 1}
        trained = bench.train(ticket=ticket)
        cost = (index + 1) * per_round
        entry = _entry(bench, "ticket", index + 1, trained.score, ticket.density, cost)
        entries.append(entry | key)
        found.append(Found(key, ticket))
    return entries, found


def supermask(bench: Bench, initial_logit: float) -> tuple[list[Entry], None]:
    """Masks learned on weights that keep their initial values."""
    section = {
        "name": "continuous_sparsification",
        "initial_logit": initial_logit,
        **_selection(bench),
        **bench.protocol.method,
        "penalty_weight": 0.0,
        "mask_lr": bench.protocol.supermask_lr,
        "freeze_weights": True,
    }
    done = bench.train(method=section)
    (method,) = done.session.methods.values()
    assert isinstance(method, ContinuousSparsification)
    read = _read(bench, done, method)
    density = method.metrics()["density"]
    entry = _entry(bench, "supermask", 1, read["recalibrated"], density, done.seconds)
    return [entry | {"initial_logit": initial_logit} | read], None


def shuffled(bench: Bench, start: Dense, found: Found) -> Entry:
    """The ticket's counts per layer at random places, from the same early weights."""
    seed = derive(bench.seed, "shuffled masks")
    masks = shuffled_masks(found.ticket.masks, seed=seed)
    done = bench.train(ticket=Ticket(masks, found.ticket.snapshot, {}))
    return _entry(bench, "shuffled", 0, done.score, found.ticket.density, 0.0)


def magnitude(bench: Bench, start: Dense, found: Found) -> Entry:
    """One round of magnitude pruning: the largest weights of the dense network, rewound."""
    masks = keep_largest(start.weights, found.kept)
    done = bench.train(ticket=Ticket(masks, start.early, {}))
    return _entry(bench, "magnitude", 1, done.score, found.ticket.density, 0.0)


def one_shot(bench: Bench, start: Dense, found: Found) -> Entry:
    """The largest weights of the dense network, trained on as long again."""
    masks = keep_largest(start.weights, found.kept)
    done = bench.train(ticket=Ticket(masks, start.trained, {}))
    return _entry(bench, "one_shot", 1, done.score, found.ticket.density, 0.0)


def gradual(bench: Bench, start: Dense, found: Found) -> Entry:
    """Gradual magnitude pruning to the ticket's density, in one training.

    Raises:
        WorkError: the ticket kept no weight.
    """
    if found.kept == 0:
        raise WorkError(
            f"seed {bench.seed}, initial logit {found.entry['initial_logit']:g}, round "
            f"{found.entry['round']}: the ticket kept no weight, so that gradual pruning cannot be "
            "matched to it; a higher initial logit or more epochs keep some"
        )
    section = {
        "name": "gradual_magnitude_pruning",
        "density": found.ticket.density,
        **_selection(bench),
    }
    done = bench.train(method=section)
    (method,) = done.session.methods.values()
    assert isinstance(method, GradualMagnitudePruning)
    recalibrate(done.session, done.session.model)
    density = method.metrics()["density"]
    return _entry(bench, "gradual", 1, done.score, density, done.seconds)


def iterative(
    bench: Bench, start: Dense, name: str, *, layerwise: bool = False, rewinding: bool = True
) -> list[Entry]:
    """Magnitude pruning round by round; each round's training is that of the ticket before it."""
    weights = start.weights
    masks: Masks | None = None
    entries: list[Entry] = []
    seconds = 0.0
    values = start.trained
    for number in range(1, bench.protocol.iterations + 1):
        masks = prune_smallest(
            weights, fraction=bench.protocol.fraction, present=masks, layerwise=layerwise
        )
        ticket = Ticket(masks, start.early if rewinding else values, {})
        done = bench.train(ticket=ticket)
        entry = _entry(bench, name, number, done.score, ticket.density, seconds)
        entries.append(entry | {"round": number})
        seconds += done.seconds
        values = snapshot(done.session.model)
        weights = {name: values[name] for name in masks}
    return entries


MATCHED: Mapping[str, Callable[[Bench, Dense, Found], Entry]] = {
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


def _read(bench: Bench, done: Trained, method: ContinuousSparsification) -> Entry:
    session = done.session
    noise = torch.Generator(session.processes.device.type)
    found = evaluate_masks(
        method,
        lambda model: score(session, model),
        recalibration_batches(session),
        forward=lambda model, batch: session.task.objective.loss(
            model, batch, noise.manual_seed(derive(bench.seed, "recalibrate"))
        ),
    )
    return {
        "soft": found.soft,
        "hard": found.hard,
        "recalibrated": found.recalibrated,
        "undecided": found.undecided,
    }


def _selection(bench: Bench) -> Entry:
    exclude = bench.protocol.exclude
    chosen: Entry = {"include": list(bench.protocol.include)}
    return chosen if exclude is None else chosen | {"exclude": list(exclude)}


def _entry(
    bench: Bench, method: str, rounds: int, value: float, density: float, seconds: float
) -> Entry:
    return {
        "method": method,
        "seed": bench.seed,
        "initial_logit": None,
        "round": None,
        "search_epochs": rounds * bench.protocol.epochs,
        "density": density,
        bench.task.headline: value,
        "search_seconds": round(seconds, 3),
    }
