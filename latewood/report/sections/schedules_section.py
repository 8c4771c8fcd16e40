"""What the schedules and the methods did: learning rate, temperature, penalty and the like."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from latewood.report.figures import Line, line_figure, runs_legend
from latewood.report.formatting import is_share, label
from latewood.report.run_data import Run
from latewood.report.section import Figure, Group, Section

__all__ = ["schedules"]

_TRAINING = {"lr": "Learning rate", "penalty": "Penalty", "gradient_norm": "Gradient norm"}
_ELSEWHERE = (
    *("/density/", "/undecided/", "/kept/", "/budget/", "/training/"),
    *("/growth/", "/growth_2/"),
    *("/effective_rank/", "/largest_value/", "/alignment/", "/collapsed/", "/not_finite/"),
)
"""Scalars of single layers, of a budget and of growth, which other sections draw."""


def schedules(runs: Sequence[Run]) -> Section | None:
    """One small figure per scalar that is not a measure of learning or of one layer."""
    wanted = [("train", name) for name in _TRAINING]
    for kind in ("method", "probe"):
        names = dict.fromkeys(name for run in runs for name in run.names(kind))
        wanted += [(kind, name) for name in names if not any(p in f"/{name}" for p in _ELSEWHERE)]
    drawn = [figure for kind, name in wanted if (figure := _figure(runs, kind, name)) is not None]
    if not drawn:
        return None
    return Section(
        title="Schedules and methods",
        groups=[Group(figures=drawn)],
        legend=runs_legend(runs) if len(runs) > 1 else Markup(""),
        log_axis=True,
    )


def _figure(runs: Sequence[Run], kind: str, name: str) -> Figure | None:
    lines = [
        Line(name=run.name, x=series.steps, y=series.values, colour=f"run {position}")
        for position, run in enumerate(runs)
        if (series := run.series(kind, name)) is not None
    ]
    if not lines or all(np.all(np.asarray(line.y) == 0) for line in lines):
        return None
    owner, _, quantity = name.rpartition("/")
    return line_figure(
        _TRAINING.get(name) or label(quantity).capitalize(),
        lines,
        points=runs[0].detail.points,
        percent=is_share(name),
        size="panel",
        legend=False,
        height=220,
        subtitle=label(owner).replace("/", " · "),
    )
