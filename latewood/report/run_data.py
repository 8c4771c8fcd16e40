"""A run as its report sees it: read from its folder, with whatever is missing said in words."""

from __future__ import annotations

import contextlib
import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from latewood.errors import WorkError, invalid
from latewood.report.sampling import Detail, evenly
from latewood.spectra import (
    PairAlignment,
    Spectrum,
    effective_rank,
    read_alignments,
    read_snapshot,
    snapshot_paths,
)
from latewood.training.run_folder import RunFolder

__all__ = ["AlignedPair", "Layer", "Run", "STAGES", "Series", "load_runs"]

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
        rows: all rows of its metrics.
        summary: its outcome; {} if it has not finished.
        layers: its spectra in the order of the model; () if no probe kept any.
        aligned: its pairs of consecutive layers; () if no probe measured any.
        detail: how much of it the report shows.
        problems: what could not be read, in sentences.
    """

    name: str
    recipe_text: str
    recipe: dict[str, Any]
    environment: dict[str, Any]
    rows: Sequence[dict[str, Any]]
    summary: dict[str, Any]
    layers: tuple[Layer, ...]
    aligned: tuple[AlignedPair, ...]
    detail: Detail
    problems: tuple[str, ...]

    @cached_property
    def _columns(self) -> dict[str, dict[str, tuple[list[float], list[float]]]]:
        columns: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
        for row in self.rows:
            named = columns.setdefault(str(row.get("kind", "")), {})
            for name, value in row.items():
                if name not in _BOOKKEEPING and isinstance(value, int | float):
                    steps, values = named.setdefault(name, ([], []))
                    steps.append(float(row["step"]))
                    values.append(float(value))
        return columns

    def names(self, kind: str) -> list[str]:
        """The scalars of a kind ("train", "validation", "probe", ...), by first appearance."""
        return list(self._columns.get(kind, {}))

    def series(self, kind: str, name: str) -> Series | None:
        """One scalar over time; None if the run has none of that name."""
        columns = self._columns.get(kind, {}).get(name)
        return None if columns is None else Series(np.array(columns[0]), np.array(columns[1]))

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
    if not folders:
        raise invalid("runs", [], "at least one run folder")
    return [
        _load(folder, name, detail, spectra=position < detail.runs)
        for position, (folder, name) in enumerate(zip(folders, _names(folders), strict=True))
    ]


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


def _load(folder: RunFolder, name: str, detail: Detail, *, spectra: bool) -> Run:
    problems: list[str] = []
    text, recipe = _recipe(folder, problems)
    rows: list[dict[str, Any]] = []
    summary: dict[str, Any] = {}
    try:
        rows = folder.read_metrics(problems)
    except WorkError as error:
        problems.append(f"The metrics could not be read: {error}.")
    try:
        summary = folder.summary
    except WorkError as error:
        problems.append(f"The summary could not be read: {error}.")
    if not text and not rows and not summary:
        raise invalid("runs", str(folder.path), "a folder with the files of a run")
    if not summary and not any("summary" in problem for problem in problems):
        problems.append("The run has no summary: it has not finished, or it was stopped.")
    layers = _layers(folder, detail, problems) if spectra else ()
    aligned = _aligned(folder, detail) if spectra else ()
    environment = recipe.pop("environment", {})
    return Run(
        name=name,
        recipe_text=text,
        recipe=recipe,
        environment=environment if isinstance(environment, dict) else {},
        rows=rows,
        summary=summary if isinstance(summary, dict) else {},
        layers=layers,
        aligned=aligned,
        detail=detail,
        problems=tuple(problems),
    )


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
