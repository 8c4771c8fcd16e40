"""How a network that grows and prunes itself comes to its budget, and what its training cost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from latewood.report.figures import Line, line_figure
from latewood.report.formatting import percent
from latewood.report.run_data import Run, Series
from latewood.report.section import Figure, Group, Section

__all__ = ["budget"]


def budget(runs: Sequence[Run]) -> Section | None:
    """Cost against the budget, training cost and channels over the steps; None without a budget."""
    budgeted = [(place, run) for place, run in enumerate(runs) if _series(run, "budget/used")]
    if not budgeted:
        return None
    several = len(runs) > 1
    figures = [
        figure
        for figure in (_used(budgeted, several=several), _training(budgeted, several=several))
        if figure is not None
    ]
    groups = [Group(figures=figures)]
    for _, run in budgeted:
        if channels := run.by_layer("method", "kept"):
            title = run.name if several else ""
            groups.append(Group(title=title, figures=[_channels(run, channels)]))
    return Section(
        title="Budget over time",
        lead="What the network costs as it grows and prunes itself, against what it may cost in "
        "the end; and the channels that every layer has.",
        groups=groups,
        notes=[note for _, run in budgeted if (note := _note(run, several=several))],
    )


def _used(budgeted: Sequence[tuple[int, Run]], *, several: bool) -> Figure:
    lines = []
    last = 0.0
    for place, run in budgeted:
        series = _series(run, "budget/used")
        assert series is not None
        last = max(last, float(series.steps[-1]))
        name = run.name if several else "cost"
        lines.append(
            Line(name=name, x=series.steps, y=series.values, colour=f"run {place}", markers=True)
        )
    first = min(float(line.x[0]) for line in lines)
    lines.append(Line(name="budget", x=[first, last], y=[1.0, 1.0], colour="muted", faint=True))
    return line_figure(
        "Cost in shares of the budget", lines, points=budgeted[0][1].detail.points, percent=True
    )


def _training(budgeted: Sequence[tuple[int, Run]], *, several: bool) -> Figure | None:
    lines = []
    for place, run in budgeted:
        for metric, words, faint in (
            ("budget/share", "network", True),
            ("training/share", "training so far", False),
        ):
            series = _series(run, metric)
            if series is not None:
                name = f"{run.name} · {words}" if several else words
                lines.append(
                    Line(
                        name=name,
                        x=series.steps,
                        y=series.values,
                        colour=f"run {place}",
                        faint=faint,
                        group=name,
                    )
                )
    if not lines:
        return None
    return line_figure(
        "Cost in shares of the full network's",
        lines,
        points=budgeted[0][1].detail.points,
        percent=True,
        subtitle="pale: one pass through the network; strong: all training up to here",
    )


def _channels(run: Run, channels: dict[str, Series]) -> Figure:
    lines = [
        Line(
            name=name,
            x=series.steps,
            y=series.values,
            colour=f"ramp {place / max(1, len(channels) - 1):.3f}",
        )
        for place, (name, series) in enumerate(channels.items())
    ]
    return line_figure("Channels of each layer", lines, points=run.detail.points // 2, size="full")


def _note(run: Run, *, several: bool) -> str:
    used, training = _series(run, "budget/used"), _series(run, "training/share")
    assert used is not None
    known = used.values[np.isfinite(used.values)]
    if not len(known):
        return ""
    text = f"{percent(float(known[-1]))} of the budget was used at the last evaluation"
    if training is not None and np.isfinite(training.values[-1]):
        text += f", after {percent(float(training.values[-1]))} of a full network's training cost"
    return f"{run.name}: {text}." if several else f"{text}."


def _series(run: Run, metric: str) -> Series | None:
    """A method's scalar, whatever the method is called in the run."""
    names = [name for name in run.names("method") if f"/{name}".endswith(f"/{metric}")]
    return run.series("method", names[0]) if names else None
