"""One call that compares tickets, and what they cost to find, with all baselines."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from latewood.errors import RequestError, WorkError, invalid
from latewood.studies.tickets import pruning_strategies
from latewood.studies.tickets.pruning_strategies import ALONE, MATCHED, Dense, FoundTicket
from latewood.studies.tickets.ticket_page import write_tickets_page
from latewood.studies.tickets.ticket_table import BASELINES, TicketTable
from latewood.studies.tickets.trial import Protocol, ticket_trainer
from latewood.studies.workers import completed
from latewood.terminal.progress import progress
from latewood.training.folder_lock import FolderLock, holds_nothing
from latewood.training.recipe import Recipe, check_sections, load_recipe

__all__ = ["search_tickets"]

TrainingCall = tuple[Callable[..., Any], tuple[Any, ...]]


def search_tickets(
    recipe: Recipe | str | Path,
    *,
    folder: str | Path,
    initial_logits: Sequence[float] = (-0.1,),
    rounds: int = 1,
    baselines: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
    rewind_epoch: int = 2,
    iterations: int = 20,
    fraction: float = 0.2,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] | None = None,
    method: Mapping[str, Any] | None = None,
    supermask_logits: Sequence[float] = (0.0,),
    supermask_lr: float = 1.0,
    jobs: int = 1,
    threads: int = 1,
    overwrite: bool = False,
    show_progress: bool | None = None,
) -> TicketTable:
    """Finds lottery tickets by continuous sparsification and trains them beside their rivals.

    Every initial logit is an independent search of ``rounds`` rounds, so that several of them
    (``jobs``) take no longer than one; a row per round tells how good its ticket becomes when
    rewound to the start of ``rewind_epoch`` and trained alone. Everything has the same initial
    weights, data order, schedule (started anew in each round) and epochs. The table does not
    depend on ``jobs``.

    Args:
        recipe: what one training is: task, model, optimizer, schedule, epochs; without methods.
        folder: where tables and tickets go; new, empty, or to be overwritten.
        initial_logits: (s0) one search each; lower is sparser. May be empty.
        rounds: (R) rounds of each search.
        baselines: some of ``BASELINES``. "shuffled", "magnitude" (one round), "one_shot" and
            "gradual" are matched to the density of every ticket; "iterative" removes ``fraction``
            in each of ``iterations`` rounds and rewinds, "iterative_layerwise" does so in each
            layer, "iterative_continued" without rewinding; "supermask" trains masks on weights
            that keep their initial values.
        seeds: repeat everything for each; None is the recipe's.
        rewind_epoch: (k) at least 0, at most the recipe's epochs.
        iterations: rounds of the iterative baselines.
        fraction: of the weights left, removed in each of those, in (0, 1).
        include: patterns of the weights that may be pruned (``core.select_parameters``).
        exclude: patterns of those that may not; None keeps the last layer dense.
        method: further arguments of ``ContinuousSparsification``.
        supermask_logits: initial logits of supermasks, one training each.
        supermask_lr: learning rate of a supermask's logits.
        jobs: trainings at the same time, in processes of their own.
        threads: threads of each training.
        overwrite: replace the files of an earlier search.
        show_progress: None shows it when the search takes longer than two seconds.

    Returns:
        The table, also written to the folder, with ``report.html`` to look at it.

    Raises:
        RequestError: an argument is not usable, or another process writes to the folder; nothing
            was started.
        WorkError: a training failed, or its process died twice.

    Source: Savarese, Silva, Maire, "Winning the Lottery with Continuous Sparsification",
    NeurIPS 2020 (arXiv 1912.04427); Frankle and Carbin (arXiv 1803.03635) for the baselines.
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe)
    protocol = Protocol(
        recipe=recipe,
        rewind_epoch=rewind_epoch,
        include=tuple(include),
        exclude=None if exclude is None else tuple(exclude),
        rounds=rounds,
        method=dict(method or {}),
        supermask_lr=supermask_lr,
        iterations=iterations,
        fraction=fraction,
        folder=Path(folder),
        threads=threads,
    )
    seeds = [recipe.seed] if seeds is None else list(seeds)
    _check(protocol, initial_logits, supermask_logits, baselines, seeds, jobs)
    _require_free(protocol.folder, overwrite)
    with FolderLock(protocol.folder):
        return _search(
            protocol, seeds, initial_logits, supermask_logits, baselines, jobs, show_progress
        )


def _search(
    protocol: Protocol,
    seeds: Sequence[int],
    initial_logits: Sequence[float],
    supermask_logits: Sequence[float],
    baselines: Sequence[str],
    jobs: int,
    show_progress: bool | None,
) -> TicketTable:
    first: list[TrainingCall] = [(_dense, (protocol, seed)) for seed in seeds]
    first += [(_continuous, (protocol, seed, s0)) for seed in seeds for s0 in initial_logits]
    if "supermask" in baselines:
        first += [(_supermask, (protocol, seed, s0)) for seed in seeds for s0 in supermask_logits]
    matched = [name for name in MATCHED if name in baselines]
    alone = [name for name in ALONE if name in baselines]
    count = len(first) + len(seeds) * (
        len(matched) * len(initial_logits) * protocol.rounds + len(alone)
    )
    with progress("tickets", count, show=show_progress) as advance:
        done = _run(first, jobs, advance)
        start = {seed: outcome[1] for seed, outcome in zip(seeds, done, strict=False)}
        tickets = [
            (seed, ticket)
            for (_, arguments), outcome in zip(first, done, strict=True)
            for seed in [arguments[1]]
            if isinstance(outcome[1], list)
            for ticket in outcome[1]
        ]
        second: list[TrainingCall] = [
            (_matched, (protocol, seed, start[seed], ticket, name))
            for seed, ticket in tickets
            for name in matched
        ]
        second += [
            (_alone, (protocol, seed, start[seed], name)) for seed in seeds for name in alone
        ]
        done += _run(second, jobs, advance)
    for seed, ticket in tickets:
        s0, number = ticket.entry["initial_logit"], ticket.entry["round"]
        ticket.ticket.save(protocol.folder / f"ticket-seed{seed}-logit{s0:g}-round{number}")
    rows = [row for outcome in done for row in outcome[0]]
    order = ["untrained", "dense", "ticket", "hard", *BASELINES]
    rows.sort(key=lambda row: order.index(row["method"]))
    table = TicketTable(
        rows,
        start[seeds[0]].headline,
        protocol.folder,
        higher_is_better=start[seeds[0]].higher_is_better,
        setting=_setting(protocol.recipe),
    )
    table.save()
    write_tickets_page(table, protocol.folder / "report.html")
    return table


def _setting(recipe: Recipe) -> str:
    model = f"{recipe.model['name']} model, " if recipe.model else ""
    return f"{model}{recipe.task['name']} task, {recipe.epochs} epochs a training"


def _dense(protocol: Protocol, seed: int) -> tuple[list[dict[str, Any]], Dense]:
    with ticket_trainer(protocol, seed) as trainer:
        return pruning_strategies.dense(trainer)


def _continuous(
    protocol: Protocol, seed: int, initial_logit: float
) -> tuple[list[dict[str, Any]], list[FoundTicket]]:
    with ticket_trainer(protocol, seed) as trainer:
        return pruning_strategies.continuous(trainer, initial_logit)


def _supermask(
    protocol: Protocol, seed: int, initial_logit: float
) -> tuple[list[dict[str, Any]], None]:
    with ticket_trainer(protocol, seed) as trainer:
        return pruning_strategies.supermask(trainer, initial_logit)


def _matched(
    protocol: Protocol, seed: int, start: Dense, reference: FoundTicket, name: str
) -> tuple[list[dict[str, Any]], None]:
    with ticket_trainer(protocol, seed) as trainer:
        return [MATCHED[name](trainer, start, reference) | reference.entry], None


def _alone(
    protocol: Protocol, seed: int, start: Dense, name: str
) -> tuple[list[dict[str, Any]], None]:
    with ticket_trainer(protocol, seed) as trainer:
        return pruning_strategies.iterative(trainer, start, name, **ALONE[name]), None


def _run(calls: Sequence[TrainingCall], jobs: int, advance: Callable[..., None]) -> list[Any]:
    """What the calls return, in their order."""
    if jobs == 1:
        collected = []
        for function, arguments in calls:
            collected.append(function(*arguments))
            advance()
        return collected
    results: dict[int, Any] = {}
    for number, result in completed(_called, calls, jobs=jobs):
        if isinstance(result, WorkError):
            raise WorkError(f"a training of the search: {result}")
        results[number] = result
        advance()
    return [results[number] for number in range(len(calls))]


def _called(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    return function(*arguments)


def _check(
    protocol: Protocol,
    initial_logits: Sequence[float],
    supermask_logits: Sequence[float],
    baselines: Sequence[str],
    seeds: Sequence[int],
    jobs: int,
) -> None:
    recipe = protocol.recipe
    if recipe.epochs is None:
        raise RequestError("recipe.epochs: missing; expected the epochs of one training, no steps")
    if recipe.methods or recipe.probes:
        raise RequestError(
            "recipe: has methods or probes; expected neither, as the search adds its own methods"
        )
    if not 0 <= protocol.rewind_epoch <= recipe.epochs:
        raise invalid("rewind_epoch", protocol.rewind_epoch, f"0 to {recipe.epochs}")
    for name in baselines:
        if name not in BASELINES:
            raise invalid("baselines", name, f"some of {', '.join(BASELINES)}")
    for name, values in (
        ("initial_logits", initial_logits),
        ("supermask_logits", supermask_logits),
        ("baselines", baselines),
        ("seeds", seeds),
    ):
        if len(set(values)) < len(values):
            raise invalid(name, list(values), "each once")
    if not seeds or min(seeds) < 0:
        raise invalid("seeds", list(seeds), "one or more integers, 0 or more")
    for name, value in (
        ("rounds", protocol.rounds),
        ("iterations", protocol.iterations),
        ("jobs", jobs),
        ("threads", protocol.threads),
    ):
        if value < 1:
            raise invalid(name, value, "1 or more")
    if not 0.0 < protocol.fraction < 1.0:
        raise invalid("fraction", protocol.fraction, "a number in (0, 1)")
    if not 0.0 < protocol.supermask_lr < math.inf:
        raise invalid("supermask_lr", protocol.supermask_lr, "a positive number")
    for key in ("initial_logit", "rounds", "include", "exclude", "freeze_weights"):
        if key in protocol.method:
            raise invalid(
                f"method.{key}", protocol.method[key], "an argument of the search instead"
            )
    section = {"name": "continuous_sparsification", **protocol.method}
    check_sections(recipe.model_copy(update={"methods": [section]}))


def _require_free(folder: Path, overwrite: bool) -> None:
    if folder.exists() and not overwrite and (not folder.is_dir() or not holds_nothing(folder)):
        raise RequestError(
            f"folder: got '{folder}', which is not empty; expected a new folder, or overwrite"
        )
