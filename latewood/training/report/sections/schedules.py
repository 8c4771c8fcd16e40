"""What the schedules and the methods did: learning rate, temperature, penalty and the like."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from latewood.training.report.figures import Line, line_figure
from latewood.training.report.runs import Run
from latewood.training.report.section import Figure, Group, Section
from latewood.training.report.words import is_share, label

__all__ = ["schedules"]

_TRAINING = {"lr": "Learning rate", "penalty": "Penalty"}
_PER_LAYER = ("/density/", "/effective_rank/")


def schedules(runs: Sequence[Run]) -> Section | None:
    """One small figure per scalar that is not a measure of learning or of one layer."""
    figures = [_figure(runs, "train", name, title) for name, title in _TRAINING.items()]
    for kind in ("method", "probe"):
        for name in dict.fromkeys(name for run in runs for name in run.names(kind)):
            if not any(part in f"/{name}" for part in _PER_LAYER):
                figures.append(_figure(runs, kind, name, label(name).replace("/", " · ")))
    drawn = [figure for figure in figures if figure is not None]
    if not drawn:
        return None
    return Section(title="Schedules and methods", groups=[Group(figures=drawn)], log_axis=True)


def _figure(runs: Sequence[Run], kind: str, name: str, title: str) -> Figure | None:
    lines = [
        Line(name=run.name, x=series.steps, y=series.values, colour=f"run {position}")
        for position, run in enumerate(runs)
        if (series := run.series(kind, name)) is not None
    ]
    if not lines or all(np.all(np.asarray(line.y) == 0) for line in lines):
        return None
    percent = is_share(name)
    points = runs[0].detail.points
    return line_figure(title, lines, points=points, percent=percent, size="panel", height=220)
