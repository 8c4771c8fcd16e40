"""What a run's network is worth on devices with stuck cells, by fault rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from latewood.report.figures import Line, line_figure
from latewood.report.formatting import number, percent, plot_text
from latewood.report.run_data import Run
from latewood.report.sampling import evenly
from latewood.report.section import Figure, Group, Section

__all__ = ["faults"]

_MOST_POINTS = 400


def faults(runs: Sequence[Run]) -> Section | None:
    """Scores over maps, yield and means by fault rate; None where nobody has measured them."""
    measured = [(place, run) for place, run in enumerate(runs) if run.faults]
    if not measured:
        return None
    several = len(runs) > 1
    groups = [Group(figures=[_means(measured, several=several)])]
    for place, run in measured:
        figures = [_distribution(run, place)]
        if run.faults["least"] is not None:
            figures.append(_yield(run, place))
        groups.append(Group(title=run.name if several else "", figures=figures))
    return Section(
        title="Stuck cells",
        lead="What the network scores on crossbars where a share of the cells is stuck, over many "
        "devices of each rate. Pale lines: what 95 % of the devices reach.",
        groups=groups,
        notes=[_note(run, several=several) for _, run in measured],
    )


def _means(measured: Sequence[tuple[int, Run]], *, several: bool) -> Figure:
    lines = []
    for place, run in measured:
        rates = run.faults["rates"]
        x = [entry["rate"] for entry in rates]
        for words, values, faint in (
            ("mean", [_mean(entry) for entry in rates], False),
            ("95 % reach", [entry["nearly_worst"] for entry in rates], True),
        ):
            name = f"{run.name} · {words}" if several else words
            lines.append(
                Line(name=name, x=x, y=values, colour=f"run {place}", faint=faint, markers=True)
            )
    headline = measured[0][1].faults["headline"]
    figure = line_figure(f"{headline} by share of stuck cells", lines, points=_MOST_POINTS)
    return _over_rates(figure, "stuck cells")


def _distribution(run: Run, place: int) -> Figure:
    traces: list[dict[str, Any]] = []
    for entry in run.faults["rates"]:
        scores = entry["scores"]
        shown = [scores[index] for index in evenly(len(scores), _MOST_POINTS)]
        traces.append(
            {
                "type": "box",
                "name": plot_text(percent(entry["rate"])),
                "y": shown,
                "boxpoints": "outliers",
                "line": {"color": f"run {place}", "width": 1.2},
                "showlegend": False,
            }
        )
    return Figure(
        title=f"{run.faults['headline']} over devices",
        data=traces,
        layout={"xaxis": {"title": {"text": "stuck cells"}, "type": "category"}},
        description=f"Boxes of {run.faults['headline']} over devices, one for each fault rate.",
    )


def _yield(run: Run, place: int) -> Figure:
    least, rates = run.faults["least"], run.faults["rates"]
    shares = [sum(s >= least for s in entry["scores"]) / len(entry["scores"]) for entry in rates]
    line = Line(
        name="yield",
        x=[entry["rate"] for entry in rates],
        y=shares,
        colour=f"run {place}",
        markers=True,
    )
    title = f"Share of devices with {run.faults['headline']} of {number(least)} or more"
    return _over_rates(line_figure(title, [line], points=_MOST_POINTS, percent=True), "stuck cells")


def _over_rates(figure: Figure, axis: str) -> Figure:
    """A figure over fault rates in place of steps."""
    for trace in figure.data:
        trace["hovertemplate"] = "%{y:.4~g}<br>%{x:.2%} stuck"
    figure.layout["xaxis"] = {"title": {"text": axis}, "tickformat": ".0%"}
    return figure


def _mean(entry: dict[str, Any]) -> float:
    return float(sum(entry["scores"]) / len(entry["scores"]))


def _note(run: Run, *, several: bool) -> str:
    rates = run.faults["rates"]
    last = rates[-1]
    text = (
        f"{run.faults['headline']} is {number(rates[0]['plain'])} without faults and "
        f"{number(_mean(last))} on average at {percent(last['rate'])} stuck cells, "
        f"{len(last['scores'])} devices"
    )
    return f"{run.name}: {text}." if several else f"{text[0].upper()}{text[1:]}."
