"""A run as its report sees it: read from its folder, with whatever is missing said in words."""

from __future__ import annotations

import contextlib
import json
import math
import tomllib
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from latewood.errors import WorkError, invalid
from latewood.report.sampling import DETAILS, Detail, evenly
from latewood.spectra import (
    PairAlignment,
    Spectrum,
    effective_rank,
    read_alignments,
    read_snapshot,
    snapshot_paths,
)
from latewood.training.run_folder import RunFolder

__all__ = [
    "STAGES",
    "AlignedPair",
    "Layer",
    "Run",
    "Scalars",
    "Series",
    "load_runs",
    "read_runs",
    "with_metrics",
    "with_spectra",
]

_BOOKKEEPING = ("step", "epoch", "kind", "lag", "dropped")
STAGES = {
    "trained": "trained",
    "finalized": "finalized (hard)",
    "recalibrated": "finalized, batch norms recalibrated",
}
"""The stages at which a run is evaluated, in their order, with what a table calls them."""


@dataclass(frozen=True)
class Series:
    """One scalar over the steps of a run.

    Args:
        steps: (n,) ascending.
        values: (n,).
    """

    steps: NDArray[np.float64]
    values: NDArray[np.float64]


class Scalars:
    """The scalars of a run over its steps, by kind and name.

    Args:
        rows: of its metrics, in order.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        self.last_step = 0
        self._columns: dict[str, dict[str, tuple[array[float], array[float]]]] = {}
        for row in rows:
            self.last_step = max(self.last_step, row["step"])
            named = self._columns.setdefault(str(row.get("kind", "")), {})
            for name, value in row.items():
                if name not in _BOOKKEEPING and isinstance(value, int | float):
                    steps, values = named.setdefault(name, (array("d"), array("d")))
                    steps.append(float(row["step"]))
                    values.append(float(value))

    def names(self, kind: str) -> list[str]:
        """The scalars of a kind, by first appearance."""
        return list(self._columns.get(kind, {}))

    def series(self, kind: str, name: str) -> Series | None:
        """One scalar over time; None if there is none of that name."""
        columns = self._columns.get(kind, {}).get(name)
        return None if columns is None else Series(np.array(columns[0]), np.array(columns[1]))


@dataclass(frozen=True)
class Layer:
    """The spectra of one weight matrix.

    Args:
        name: the parameter's name.
        shape: (out, in), or (groups, out, in).
        steps: (snapshots,) ascending.
        values: (snapshots, R) singular values, the mean over the groups if there are several.
        ranks: (snapshots,) normalised effective ranks, the mean over the groups.
    """

    name: str
    shape: tuple[int, ...]
    steps: NDArray[np.float64]
    values: NDArray[np.float64]
    ranks: NDArray[np.float64]


@dataclass(frozen=True)
class AlignedPair:
    """How two consecutive layers aligned.

    Args:
        name: the pair's name.
        steps: (snapshots,) ascending.
        scores: (snapshots,).
        diagonals: (snapshots, k), NaN beyond what a snapshot has.
        random: the mean over random directions.
    """

    name: str
    steps: NDArray[np.float64]
    scores: NDArray[np.float64]
    diagonals: NDArray[np.float64]
    random: float


@dataclass(frozen=True)
class Run:
    """One run.

    Args:
        name: what the report calls it.
        recipe_text: ``recipe.toml`` as it stands.
        recipe: the same as a mapping, without the environment.
        environment: where it was made.
        summary: its outcome; {} if it has not finished.
        problems: what could not be read, in sentences.
        scalars: its metrics.
        layers: its spectra in the order of the model; () if no probe kept any.
        aligned: its pairs of consecutive layers; () if no probe measured any.
        detail: how much of it the report shows.
        faults: what ``latewood faults`` has measured; {} if it has not.
    """

    name: str
    recipe_text: str
    recipe: dict[str, Any]
    environment: dict[str, Any]
    summary: dict[str, Any]
    problems: tuple[str, ...]
    scalars: Scalars = field(default_factory=Scalars)
    layers: tuple[Layer, ...] = ()
    aligned: tuple[AlignedPair, ...] = ()
    detail: Detail = DETAILS[0]
    faults: dict[str, Any] = field(default_factory=dict)

    def names(self, kind: str) -> list[str]:
        """The scalars of a kind ("train", "validation", "probe", ...), by first appearance."""
        return self.scalars.names(kind)

    def series(self, kind: str, name: str) -> Series | None:
        """One scalar over time; None if the run has none of that name."""
        return self.scalars.series(kind, name)

    def by_layer(self, kind: str, quantity: str) -> dict[str, Series]:
        """The scalars called "quantity/layer", also under a method's name, by layer."""
        layers: dict[str, Series] = {}
        for name in self.names(kind):
            _, middle, layer = f"/{name}".partition(f"/{quantity}/")
            series = self.series(kind, name)
            if middle and series is not None:
                # Two methods that report the same layer keep their own names apart.
                layers[name if layer in layers else layer] = series
        return layers

    @property
    def headline(self) -> str:
        """The metric by which the run is judged; "" if it does not say."""
        return str(self.summary.get("headline", ""))

    @property
    def higher_is_better(self) -> bool:
        """The direction of the headline."""
        return bool(self.summary.get("higher_is_better", True))

    @property
    def evaluations(self) -> dict[str, dict[str, float]]:
        """The metrics by stage, in the order of the stages."""
        stages = self.summary.get("evaluations")
        stages = stages if isinstance(stages, dict) else {}
        order = [*STAGES, *(stage for stage in stages if stage not in STAGES)]
        return {
            stage: numbers(stages[stage])
            for stage in order
            if isinstance(stages.get(stage), dict) and numbers(stages[stage])
        }

    @property
    def headline_value(self) -> float | None:
        """The headline's value at the last stage that has one."""
        values = [
            metrics[self.headline]
            for metrics in self.evaluations.values()
            if self.headline in metrics
        ]
        return values[-1] if values else None

    @property
    def size(self) -> dict[str, float]:
        """Parameters, bits, MACs and the like of the final model."""
        sizes = self.summary.get("size")
        return numbers(sizes) if isinstance(sizes, dict) else {}


def numbers(mapping: dict[str, Any]) -> dict[str, float]:
    """The numbers among a mapping's values; null reads as NaN."""
    filled = {str(k): math.nan if v is None else v for k, v in mapping.items()}
    return {k: v for k, v in filled.items() if isinstance(v, int | float)}


def load_runs(folders: Sequence[RunFolder], detail: Detail) -> list[Run]:
    """Reads runs for a report.

    Args:
        folders: the run folders, in order.
        detail: how much is kept.

    Returns:
        One run per folder; damaged files are problems of the run rather than errors.

    Raises:
        RequestError: no folders, or one that holds nothing of a run.
    """
    runs = map(with_metrics, read_runs(folders), folders)
    return [
        with_spectra(run, folder, detail) if position < detail.runs else replace(run, detail=detail)
        for position, (run, folder) in enumerate(zip(runs, folders, strict=True))
    ]


def read_runs(folders: Sequence[RunFolder]) -> list[Run]:
    """The recipes and outcomes of runs, without their metrics and spectra.

    Args:
        folders: the run folders, in order.

    Raises:
        RequestError: no folders, or one that holds nothing of a run.
    """
    if not folders:
        raise invalid("runs", [], "at least one run folder")
    return [_read(folder, name) for folder, name in zip(folders, _names(folders), strict=True)]


def with_metrics(run: Run, folder: RunFolder) -> Run:
    """A run with the scalars of its folder; damaged files are among its problems."""
    problems = list(run.problems)
    try:
        scalars = Scalars(folder.read_metrics(problems))
    except WorkError as error:
        problems.append(f"The metrics could not be read: {error}.")
        scalars = Scalars()
    return replace(run, scalars=scalars, problems=tuple(problems))


def with_spectra(run: Run, folder: RunFolder, detail: Detail) -> Run:
    """A run with as much of its spectra as a detail asks for; damaged files are problems."""
    problems = list(run.problems)
    return replace(
        run,
        layers=_layers(folder, detail, problems),
        aligned=_aligned(folder, detail),
        detail=detail,
        problems=tuple(problems),
    )


def _names(folders: Sequence[RunFolder]) -> list[str]:
    """Folder names, each with as many parents as tell it from the others."""
    paths = [folder.path.resolve().parts for folder in folders]
    names = []
    for path in paths:
        depths = range(1, len(path))
        alone = (d for d in depths if sum(other[-d:] == path[-d:] for other in paths) == 1)
        names.append("/".join(path[-next(alone, 1) :]))
    # The same folder given twice.
    return [
        f"{name} ({names[: i + 1].count(name)})" if names.count(name) > 1 else name
        for i, name in enumerate(names)
    ]


def _read(folder: RunFolder, name: str) -> Run:
    problems: list[str] = []
    text, recipe = _recipe(folder, problems)
    summary: dict[str, Any] = {}
    try:
        summary = folder.summary
    except WorkError as error:
        problems.append(f"The summary could not be read: {error}.")
    if not text and not summary and not folder.metrics_path.exists():
        raise invalid("runs", str(folder.path), "a folder with the files of a run")
    if not summary and not any("summary" in problem for problem in problems):
        problems.append("The run has no summary: it has not finished, or it was stopped.")
    environment = recipe.pop("environment", {})
    return Run(
        faults=_faults(folder, problems),
        name=name,
        recipe_text=text,
        recipe=recipe,
        environment=environment if isinstance(environment, dict) else {},
        summary=summary if isinstance(summary, dict) else {},
        problems=tuple(problems),
    )


def _faults(folder: RunFolder, problems: list[str]) -> dict[str, Any]:
    """Scores by fault rate, each entry as the section needs it."""
    if not folder.faults_path.exists():
        return {}
    try:
        found = json.loads(folder.faults_path.read_text(encoding="utf-8"))
        rates = [
            {
                "rate": float(entry["hrs"]) + float(entry["lrs"]),
                "hrs": float(entry["hrs"]),
                "scores": [float(score) for score in entry["scores"]],
                "nearly_worst": float(entry["summary"]["nearly_worst"]),
                "plain": float(entry["summary"]["plain"]),
            }
            for entry in found["rates"]
        ]
        if not rates or not all(entry["scores"] for entry in rates):
            raise ValueError("no scores")
        least = found["least"] if found["least"] is None else float(found["least"])
        return {"headline": str(found["headline"]), "least": least, "rates": rates}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        problems.append(f"The scores under faults could not be read: {error!r}.")
        return {}


def _recipe(folder: RunFolder, problems: list[str]) -> tuple[str, dict[str, Any]]:
    try:
        text = folder.recipe_path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        problems.append("The recipe is missing.")
        return "", {}
    try:
        return text, tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        problems.append(f"The recipe is not valid TOML: {error}.")
        return text, {}


def _layers(folder: RunFolder, detail: Detail, problems: list[str]) -> tuple[Layer, ...]:
    paths = list(snapshot_paths(folder.spectra_folder).items())
    collected: dict[str, list[tuple[int, Spectrum]]] = {}
    for step, path in (paths[i] for i in evenly(len(paths), detail.snapshots)):
        try:
            spectra = read_snapshot(path)
        except WorkError:
            problems.append(f"A snapshot of singular values could not be read: {path.name}.")
            continue
        for spectrum in spectra:
            # Of a look that only followed the first values there is no effective rank.
            if spectrum.complete:
                collected.setdefault(spectrum.name, []).append((step, spectrum))
    return tuple(_layer(name, moments) for name, moments in collected.items())


def _aligned(folder: RunFolder, detail: Detail) -> tuple[AlignedPair, ...]:
    paths = list(snapshot_paths(folder.spectra_folder).items())
    collected: dict[str, list[tuple[int, PairAlignment]]] = {}
    for step, path in (paths[i] for i in evenly(len(paths), detail.snapshots)):
        # That a file cannot be read is said where the spectra are.
        with contextlib.suppress(WorkError):
            for name, alignment in read_alignments(path).items():
                collected.setdefault(name, []).append((step, alignment))
    return tuple(_aligned_pair(name, moments) for name, moments in collected.items())


def _aligned_pair(name: str, moments: Sequence[tuple[int, PairAlignment]]) -> AlignedPair:
    alignments = [alignment for _, alignment in moments]
    diagonals = np.full(
        (len(alignments), max(len(alignment.diagonal) for alignment in alignments)), np.nan
    )
    for row, alignment in zip(diagonals, alignments, strict=True):
        row[: len(alignment.diagonal)] = alignment.diagonal
    return AlignedPair(
        name=name,
        steps=np.array([step for step, _ in moments], dtype=float),
        scores=np.array([alignment.score for alignment in alignments]),
        diagonals=diagonals,
        random=alignments[-1].baseline,
    )


def _layer(name: str, moments: Sequence[tuple[int, Spectrum]]) -> Layer:
    shape = moments[-1][1].shape
    # A layer that has changed its size is shown from the change on.
    same_shape = [(step, spectrum) for step, spectrum in moments if spectrum.shape == shape]
    values = np.stack([spectrum.values for _, spectrum in same_shape]).astype(np.float64)
    by_group = values.reshape(len(same_shape), -1, values.shape[-1])
    return Layer(
        name=name,
        shape=shape,
        steps=np.array([step for step, _ in same_shape], dtype=float),
        values=by_group.mean(1),
        ranks=effective_rank(torch.from_numpy(by_group)).mean(1).numpy(),
    )
