"""How a network grew: its widths and cost, the loss at each event, and parts of different ages."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from latewood.report.figures import Line, line_figure
from latewood.report.formatting import number, percent
from latewood.report.run_data import Run, Series
from latewood.report.section import Figure, Group, Section

__all__ = ["growth"]


def growth(runs: Sequence[Run]) -> Section | None:
    """Widths, cost, loss around events, block norms and rates; None where nothing grows."""
    growing = [(place, run) for place, run in enumerate(runs) if run.by_layer("method", "width")]
    if not growing:
        return None
    several = len(runs) > 1
    groups = [Group(figures=[_cost(growing, several=several)])]
    for place, run in growing:
        figures = [_widths(run), *_events(run, place), *_stages(run)]
        groups.append(Group(title=run.name if several else "", figures=figures))
    return Section(
        title="Growth",
        lead="What the network costs as it grows, how wide its layers are, what each event did to "
        "the loss, and how the parts born at different events stand to each other.",
        groups=groups,
        notes=[note for _, run in growing if (note := _note(run, several=several))],
    )


def _cost(growing: Sequence[tuple[int, Run]], *, several: bool) -> Figure:
    lines = []
    for place, run in growing:
        for metric, words, faint in (
            ("cost", "network", True),
            ("training/share", "training so far", False),
        ):
            series = _series(run, metric)
            if series is not None:
                name = f"{run.name} · {words}" if several else words
                colour = f"run {place}"
                lines.append(
                    Line(name=name, x=series.steps, y=series.values, colour=colour, faint=faint)
                )
    return line_figure(
        "Cost in shares of the last width's",
        lines,
        points=growing[0][1].detail.points,
        percent=True,
        subtitle="pale: one pass through the network; strong: all training up to here",
    )


def _widths(run: Run) -> Figure:
    layers = run.by_layer("method", "width")
    lines = [
        Line(name=name, x=series.steps, y=series.values, colour=_shade(place, len(layers)))
        for place, (name, series) in enumerate(layers.items())
    ]
    return line_figure("Width of each layer", lines, points=run.detail.points // 2)


def _events(run: Run, place: int) -> list[Figure]:
    steps, before, after = (_series(run, f"event/{name}") for name in ("step", "before", "after"))
    if steps is None or before is None or after is None:
        return []
    _, first = np.unique(steps.values, return_index=True)
    first = first[steps.values[first] > 0]
    if not len(first):
        return []
    at = steps.values[first]
    lines = [
        Line(name="before", x=at, y=before.values[first], colour="muted", markers=True),
        Line(name="after", x=at, y=after.values[first], colour=f"run {place}", markers=True),
    ]
    return [line_figure("Loss at each event", lines, points=run.detail.points)]


def _stages(run: Run) -> list[Figure]:
    figures = []
    for quantity, title in (
        ("norm", "Norm of the weights by the event they come from"),
        ("rate", "Learning rate relative to the oldest weights'"),
    ):
        stages = {
            name: series
            for name, series in run.by_layer("method", quantity).items()
            if name.isdecimal()
        }
        lines = [
            Line(
                name="seed" if name == "0" else f"event {name}",
                x=series.steps,
                y=_present(series.values),
                colour=_shade(place, len(stages)),
            )
            for place, (name, series) in enumerate(stages.items())
            if np.any(series.values != 0)
        ]
        if lines:
            figures.append(line_figure(title, lines, points=run.detail.points))
    return figures


def _present(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """A gap where nothing of a stage was there."""
    return np.where(values == 0, np.nan, values)


def _shade(place: int, count: int) -> str:
    return f"ramp {place / max(1, count - 1):.3f}"


def _note(run: Run, *, several: bool) -> str:
    share, cost = _series(run, "training/share"), _series(run, "cost")
    if share is None or cost is None or not np.isfinite(share.values[-1]):
        return ""
    text = (
        f"its training cost {percent(float(share.values[-1]))} of what as many steps at the last "
        f"width cost, and it ended at {number(float(cost.values[-1] / cost.values[0]))} times the "
        "cost of its first width"
    )
    return f"{run.name}: {text}." if several else f"{text[0].upper()}{text[1:]}."


def _series(run: Run, metric: str) -> Series | None:
    """A scalar of growth, whatever the method is called in the run."""
    widths = [name for name in run.names("method") if "/width/" in f"/{name}"]
    prefix = f"/{widths[0]}".partition("/width/")[0].strip("/") if widths else ""
    return run.series("method", f"{prefix}/{metric}" if prefix else metric)
