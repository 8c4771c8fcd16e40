"""Recipes, runs and tables of numbers placed between the kernel and the rich regime."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latewood.errors import RequestError, invalid
from latewood.regimes import Regime, limit, minimum_l1, minimum_l2, regime
from latewood.tasks import Task
from latewood.training.components import build
from latewood.training.opened_run import open_run
from latewood.training.randomness import caller_unchanged
from latewood.training.recipe import load_recipe
from latewood.training.session_builder import build_model

__all__ = ["PlacedNetwork", "diagonal_rows", "standing_of"]


@dataclass(frozen=True)
class PlacedNetwork:
    """A network and where it stands.

    Args:
        regime: what was found.
    """

    regime: Regime

    def rows(self) -> list[dict[str, Any]]:
        """A row for every output scale; what was measured comes first."""
        here = self.regime.here
        way = "measured" if self.regime.measured else "predicted"
        standings = [(way, here)]
        standings += [
            ("predicted", s) for s in self.regime.sweep if s.alpha != 1 or way == "measured"
        ]
        return [
            {
                "output scale": standing.alpha,
                "relK": standing.relative,
                "cosd": standing.cosine,
                "alignment": standing.alignment,
                "regime": standing.verdict,
                "how": how,
            }
            for how, standing in standings
        ]

    def layer_rows(self) -> list[dict[str, Any]]:
        """A row for every layer."""
        return [
            {
                "layer": layer.layer,
                "kernel": layer.share,
                "change": layer.change,
                "relK": layer.relative,
                "cosd": layer.cosine,
                "lazy": "yes" if layer.lazy else "no",
            }
            for layer in self.regime.layers
        ]


def standing_of(
    source: str, *, examples: int = 64, alphas: Sequence[float] = (), trust: bool = False
) -> PlacedNetwork:
    """Places the network of a recipe, or of a run before and after its training.

    Args:
        source: name or path of a recipe, or the folder of a run.
        examples: of the training data, the first ones.
        alphas: output scales to predict besides.
        trust: import and call what the run's recipe names.

    Returns:
        Predicted for a recipe, measured for a run.

    Raises:
        RequestError: no such recipe or run, a task whose samples are not inputs and one target, a
            run that changed its parameters, or a network without a tangent kernel.
    """
    folder = Path(source)
    with caller_unchanged():
        if folder.is_dir():
            opened = open_run(folder, trust=trust)
            recipe, task, trained = opened.recipe, opened.task, opened.model
        else:
            recipe = load_recipe(source)
            task, trained = build("task", recipe.task, "task"), None
        model = build_model(recipe, task, torch.device("cpu"))
    inputs, targets = _samples(task, examples)
    return PlacedNetwork(regime(model, inputs, targets, trained=trained, alphas=alphas))


def _samples(task: Task, examples: int) -> tuple[tuple[Tensor, ...], Tensor]:
    batch = task.train.gather(torch.arange(min(examples, len(task.train))))
    count = len(task.example_inputs)
    if len(batch) != count + 1:
        raise RequestError(
            f"task: got {task.name!r}, whose samples have {len(batch)} fields; expected inputs and "
            "one target"
        )
    return tuple(batch[:count]), batch[count]


def diagonal_rows(
    path: Path, *, depths: Sequence[float], alphas: Sequence[float]
) -> list[dict[str, Any]]:
    """The exact limits of gradient flow for the data of a CSV file.

    Args:
        path: rows of features, then the target; a first row of words is left out.
        depths: of the diagonal networks.
        alphas: scales of their starts.

    Returns:
        A row for every depth and scale, then those of least l1 and l2 norm.

    Raises:
        RequestError: the file is not such a table, or ``limit`` refuses it.
    """
    inputs, targets = _read(path)
    found = limit(inputs, targets, depth=torch.tensor(list(depths))[:, None], alpha=list(alphas))
    rows = []
    for i, depth in enumerate(depths):
        for j, alpha in enumerate(alphas):
            rows.append(_row(f"{depth:g}", alpha, found.beta[i, j]))
    rows.append(_row("least l1", None, minimum_l1(inputs, targets)))
    rows.append(_row("least l2", None, minimum_l2(inputs, targets)))
    return rows


def _row(depth: str, alpha: float | None, beta: Tensor) -> dict[str, Any]:
    return {
        "depth": depth,
        "alpha": alpha,
        "l1 norm": float(beta.abs().sum()),
        "l2 norm": float(beta.norm()),
        "above 1 %": int((beta.abs() > 0.01 * beta.abs().max()).sum()),
    }


def _read(path: Path) -> tuple[Tensor, Tensor]:
    try:
        lines = [line for line in csv.reader(path.read_text(encoding="utf-8").splitlines()) if line]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RequestError(f"{path}: cannot be read as a table: {error}") from error
    rows: list[list[float]] = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append([float(word) for word in line])
        except ValueError as error:
            if number > 1:
                raise invalid(f"{path}, row {number}", ",".join(line)[:60], "numbers") from error
    if not rows or len({len(row) for row in rows}) != 1 or len(rows[0]) < 2:
        raise invalid(
            str(path), f"{len(rows)} rows", "rows of equal length: features, then a target"
        )
    table = torch.tensor(rows, dtype=torch.float64)
    return table[:, :-1], table[:, -1]
