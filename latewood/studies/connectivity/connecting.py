"""Two trained networks of one recipe, and what lies on the straight line between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from latewood.core import read_tensors
from latewood.errors import RequestError, invalid
from latewood.spectra import (
    Agreement,
    Connection,
    agreement,
    connect,
    endpoint_factors,
    matched,
)
from latewood.tasks import Dataset, Task, TensorDataset
from latewood.terminal.progress import progress
from latewood.terminal.tables import Row
from latewood.training import checkpoints, components
from latewood.training.checkpoints import load_into
from latewood.training.evaluation import Recalibration, evaluate
from latewood.training.processes import processes
from latewood.training.randomness import caller_unchanged, derive, seed_everything
from latewood.training.recipe import Recipe, load_recipe
from latewood.training.run_folder import RunFolder
from latewood.training.session import Session, open_session

__all__ = ["Connected", "connect_files", "model_session"]

AS_THEY_ARE, PERMUTED, WHOLE = "as they are", "permuted", "whole"
UNCHANGED = (AS_THEY_ARE, WHOLE)


@dataclass(frozen=True)
class Connected:
    """Two networks and the line between them.

    Args:
        first: what the first is called.
        second: what the second is called.
        task: the data that they were scored on.
        lines: scores along the line, by the order of the second network's channels: "as they are",
            and "permuted" if asked for.
        agreements: of the singular vectors of each weight, likewise.
        fraction: share of the singular values that truncated networks keep; None without them.
        truncated: scores of these along the line, by order as well.
    """

    first: str
    second: str
    task: str
    lines: dict[str, Connection]
    agreements: dict[str, dict[str, Agreement]]
    fraction: float | None = None
    truncated: dict[str, Connection] = field(default_factory=dict)

    def walks(self) -> Iterator[tuple[str, str, Connection]]:
        """Every line: the order of the channels, the part of the spectra, the scores."""
        for order, line in self.lines.items():
            yield order, WHOLE, line
        for order, line in self.truncated.items():
            yield order, f"top {self.fraction:g}", line

    def path_rows(self) -> list[Row]:
        """One row per position on the line, with the score of every kind there."""
        alphas = next(iter(self.lines.values())).alphas
        return [
            {"alpha": alpha}
            | {
                _column(name, order, spectra): values[position]
                for order, spectra, line in self.walks()
                for name, values in line.scores.items()
            }
            for position, alpha in enumerate(alphas)
        ]

    def barrier_rows(self) -> list[Row]:
        """One row per score, order of the channels and part of the spectra, with both barriers."""
        return [
            {
                "score": name,
                "channels": order,
                "spectra": spectra,
                "barrier": line.barrier(name),
                "between the ends": line.barrier_interior(name) if len(line.alphas) > 2 else None,
            }
            for order, spectra, line in self.walks()
            for name in line.scores
        ]

    def agreement_rows(self) -> list[Row]:
        """One row per weight; of one with several matrices the mean."""
        names = self.agreements[AS_THEY_ARE]
        return [
            {
                "weight": name,
                "random": own.baseline,
                **{
                    _column("agreement", order): float(found[name].score.mean())
                    for order, found in self.agreements.items()
                },
            }
            for name, own in names.items()
        ]

    def rows(self) -> list[Row]:
        """Everything as one long table."""
        heights = [
            _long(kind, row["score"], row["channels"], row["spectra"], row[kind])
            for row in self.barrier_rows()
            for kind in ("barrier", "between the ends")
        ]
        return [
            *(
                _long("score", name, order, spectra, value, alpha)
                for order, spectra, line in self.walks()
                for name, values in line.scores.items()
                for alpha, value in zip(line.alphas, values, strict=True)
            ),
            *heights,
            *(
                _long(kind, name, order, WHOLE, value)
                for order, found in self.agreements.items()
                for name, own in found.items()
                for kind, value in (
                    ("agreement", float(own.score.mean())),
                    ("random agreement", own.baseline),
                )
            ),
        ]


def connect_files(
    first: str | Path,
    second: str | Path,
    *,
    recipe: Recipe | None = None,
    points: int = 11,
    permute: bool = False,
    truncate: float | None = None,
    samples: int | None = None,
    show_progress: bool | None = None,
) -> Connected:
    """Scores networks on the line between two trained ones, on training and validation samples.

    Every entry of the states is interpolated, buffers included, and batch norms are measured anew
    at every position, from the first training batches without augmentation, as many as the recipe
    says in ``recalibration_batches``.

    Args:
        first: a run folder (its final model, or its last checkpoint if it has not finished), a
            checkpoint folder of a run, or a file with a state dict.
        second: likewise.
        recipe: of the model and the data; that of the first end's run, or else of the second's, if
            left out.
        points: equally spaced positions, the ends included.
        permute: walk a second time with the second network's channels in the order that is closest
            to the first's.
        truncate: walk again with every network truncated to the top part of its spectra, this
            share of the singular values of each matrix but the head's.
        samples: score only the first so many training samples, and as many validation samples.
        show_progress: None shows it when the work takes longer than two seconds; False never.

    Returns:
        Scores named "train loss", "validation error" and so on; lower is better in all.

    Raises:
        RequestError: nothing to read, no recipe, states that do not fit the model (with the
            entries that differ), a share outside [0, 1], or ``permute`` or ``truncate`` for a
            model under transformations.
        WorkError: a file is damaged.
    """
    if points < 2:
        raise invalid("points", points, "an integer of at least 2")
    if samples is not None and samples < 1:
        raise invalid("samples", samples, "an integer of at least 1")
    if truncate is not None and not 0 <= truncate <= 1:
        raise invalid("truncate", truncate, "a number from 0 to 1")
    ends = [_read(Path(path)) for path in (first, second)]
    recipe = recipe or _recipe(Path(first)) or _recipe(Path(second))
    if recipe is None:
        raise RequestError(
            f"recipe: missing; expected one, as neither '{first}' nor '{second}' is part of a run"
        )
    with model_session(recipe, ends[0]) as session:
        model = session.model
        for path, state in zip((first, second), ends, strict=True):
            load_into(model, state, str(path))
        # On the model's device, and with the dtypes that it computes with.
        one, other = (_placed(model, state) for state in ends)
        pairs = {AS_THEY_ARE: other}
        if permute:
            example = [x.to(session.processes.device) for x in session.task.example_inputs]
            pairs[PERMUTED], _ = matched(model, one, other, example)
        scores, seen = _Scores(session, samples), Recalibration(session)
        walks = len(pairs) * (1 if truncate is None else 2)
        with progress("positions", points * walks, show=show_progress) as advance:

            def scored(network: nn.Module) -> dict[str, float]:
                found = scores(network)
                advance()
                return found

            def walked(fraction: float | None) -> dict[str, Connection]:
                return {
                    order: connect(
                        model,
                        one,
                        end,
                        scored,
                        points=points,
                        batches=seen,
                        forward=seen.forward,
                        truncate=fraction,
                    )
                    for order, end in pairs.items()
                }

            lines = walked(None)
            truncated = {} if truncate is None else walked(truncate)
        own, agreements = endpoint_factors(model, one), {}
        for order, end in pairs.items():
            found = endpoint_factors(model, end)
            agreements[order] = {name: agreement(each, found[name]) for name, each in own.items()}
        return Connected(
            str(first), str(second), session.task.name, lines, agreements, truncate, truncated
        )


def _column(name: str, order: str, spectra: str = WHOLE) -> str:
    return ", ".join([name, *(part for part in (order, spectra) if part not in UNCHANGED)])


def _long(
    kind: str, name: object, order: object, spectra: object, value: object, alpha: object = None
) -> Row:
    about = {"kind": kind, "name": name, "channels": order, "spectra": spectra}
    return about | {"alpha": alpha, "value": value}


def _read(path: Path) -> dict[str, Tensor]:
    run = RunFolder(path)
    if run.exists and not run.finished:
        latest = checkpoints.latest(run.checkpoints)
        if latest is None:
            raise invalid("run", str(path), "a run with a model or a checkpoint")
        return latest.model_state()
    step = path.name.removeprefix("step-")
    if path.parent.name == "checkpoints" and step.isdecimal():
        return checkpoints.at_step(path.parent, int(step)).model_state()
    return read_tensors(path)


def _recipe(path: Path) -> Recipe | None:
    """The recipe of the run that a folder or file belongs to."""
    resolved = path.resolve()
    for folder in (resolved, *list(resolved.parents)[:3]):
        run = RunFolder(folder)
        if run.exists:
            return load_recipe(run.recipe_path)
    return None


@contextmanager
def model_session(recipe: Recipe, state: Mapping[str, Tensor]) -> Iterator[Session]:
    """The recipe's task and model; with its methods only where the state was saved with them.

    Args:
        recipe: of a run in one process.
        state: that the model is to hold; it is not loaded.

    Raises:
        RequestError: the recipe does not fit, or there are several processes.
    """
    plain = recipe.model_copy(update={"methods": [], "probes": [], "trackers": []})
    with (
        caller_unchanged(cuda=recipe.device not in ("cpu", "mps")),
        components.importable(*recipe.folders),
        processes(
            device=recipe.device, precision=recipe.precision, trackers=[], folder=Path()
        ) as group,
    ):
        if group.count > 1:
            raise RequestError("processes: got several of a launcher; expected one")
        seed_everything(derive(recipe.seed, "task"), group.device)
        task = components.build("task", recipe.task, "task")
        if not isinstance(task, Task):
            raise RequestError(f"task: {recipe.task['name']!r} returned no Task")
        session = open_session(plain, RunFolder(Path()), group, task)
        if recipe.methods and session.model.state_dict().keys() != state.keys():
            methods = plain.model_copy(update={"methods": recipe.methods})
            transformed = open_session(methods, RunFolder(Path()), group, task)
            if transformed.model.state_dict().keys() == state.keys():
                session = transformed
        yield session


def _placed(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: state[name].to(own) for name, own in model.state_dict().items()}


class _Scores:
    """Losses and errors of a model on the training and the validation samples."""

    def __init__(self, session: Session, samples: int | None) -> None:
        self._session = session
        parts = {"train": session.task.train, "validation": session.task.validation}
        self._parts = {name: _first(part, samples) for name, part in parts.items()}

    def __call__(self, model: nn.Module) -> dict[str, float]:
        found = {}
        for part, dataset in self._parts.items():
            scores = evaluate(self._session, model, dataset)
            for name, value in _costs(self._session.task, scores).items():
                found[f"{part} {name}"] = value
        return found


def _costs(task: Task, scores: Mapping[str, float]) -> dict[str, float]:
    """What rises on a barrier: the loss, the error, and a headline that is better when lower."""
    costs = {"loss": scores["loss"]}
    if "accuracy" in scores:
        costs["error"] = 1 - scores["accuracy"]
    if not task.higher_is_better:
        costs[task.headline] = scores[task.headline]
    return costs


def _first(dataset: Dataset, samples: int | None) -> Dataset:
    if samples is None or samples >= len(dataset):
        return dataset
    return TensorDataset(*dataset.gather(torch.arange(samples)))
