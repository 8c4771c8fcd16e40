"""Plotly figures in the report's manner: curves over steps, heat maps over layers and steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from latewood.report.formatting import plot_text
from latewood.report.run_data import Run
from latewood.report.sampling import evenly, keep_extremes, short
from latewood.report.section import Figure

__all__ = [
    "Line",
    "heat_figure",
    "line_figure",
    "ramp_legend",
    "row_axis",
    "runs_legend",
    "step_ticks",
]


_WIDTH = 0.93
_RANDOM_AXIS = {"domain": [_WIDTH + 0.015, 1], "anchor": "y", "showgrid": False, "type": "category"}


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve.

    Args:
        name: its name in the legend and under the pointer; any text.
        x: (n,) horizontal positions.
        y: (n,) values; NaN is a gap.
        colour: "run 0", "ramp 0.5", "ink", "muted".
        faint: drawn thin and pale, behind the others.
        markers: whether its points are marked.
        group: lines of one group are switched together in the legend.
        legend: whether the legend lists it.
    """

    name: str
    x: Sequence[float] | NDArray[np.float64]
    y: Sequence[float] | NDArray[np.float64]
    colour: str
    faint: bool = False
    markers: bool = False
    group: str = ""
    legend: bool = True


def line_figure(
    title: str,
    lines: Sequence[Line],
    *,
    points: int,
    percent: bool = False,
    size: Literal["full", "half", "panel"] = "half",
    height: int = 300,
    subtitle: str = "",
    legend: bool = True,
) -> Figure:
    """Curves over the steps of a run.

    Args:
        title: caption, which names the vertical axis.
        lines: the curves.
        points: most points of one curve; peaks are kept.
        percent: values are shares, shown in percent.
        size: see ``Figure``.
        height: in CSS pixels.
        subtitle: see ``Figure``.
        legend: whether to show a legend when there is more than one curve.
    """
    value = "%{y:.2%}" if percent else "%{y:.4~g}"
    data = []
    for line in lines:
        x, y = keep_extremes(line.x, line.y, points)
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers" if line.markers and len(x) <= 60 else "lines",
                "name": plot_text(line.name),
                "x": short(x, 10),
                "y": short(y),
                "line": {"color": line.colour, "width": 1.2 if line.faint else 2.25},
                "marker": {"color": line.colour, "size": 5},
                "opacity": 0.6 if line.faint else 1,
                "legendgroup": plot_text(line.group or line.name),
                "showlegend": line.legend,
                "hovertemplate": f"{value}<br>step %{{x:,}}",
            }
        )
    ticks = "" if not percent else ".0%" if _spread(lines) >= 0.05 else ".1%"
    shown = sum(line.legend for line in lines)
    return Figure(
        title=title,
        subtitle=subtitle,
        data=data,
        layout={
            "showlegend": legend and shown > 1,
            "xaxis": {"title": {"text": "step"}},
            "yaxis": {"tickformat": ticks},
        },
        height=height,
        size=size,
        description=f"{title}: {', '.join(line.name for line in lines[:8])} over the steps.",
    )


def _spread(lines: Sequence[Line]) -> float:
    values = [value for line in lines for value in line.y if math.isfinite(value)]
    return max(values) - min(values) if values else 0.0


def heat_figure(
    title: str,
    rows: Sequence[str],
    steps: Sequence[float] | NDArray[np.float64],
    values: NDArray[np.float64],
    *,
    quantity: str,
    snapshots: int,
    floor: float = 0.0,
    log: bool = False,
    size: Literal["full", "half"] = "full",
    subtitle: str = "",
    random: Sequence[float] = (),
    by_snapshot: bool = False,
) -> Figure:
    """Values between 0 and 1 over layers (downwards) and steps (to scale).

    Args:
        title: caption.
        rows: name of each layer, from the first to the last.
        steps: (n,) ascending.
        values: (rows, n); NaN is left blank.
        quantity: what the values are, for the colour bar and under the pointer.
        snapshots: most columns that are drawn.
        floor: the value that gets the first colour.
        log: colour by the logarithm where values span several powers of ten; zeros then get the
            colour of the smallest power.
        size: see ``Figure``.
        subtitle: see ``Figure``.
        random: per row, what random matrices would give, drawn as a column of its own; () for none.
        by_snapshot: number the columns instead of setting them to scale.
    """
    columns = evenly(len(steps), snapshots)
    values = np.asarray(values, dtype=float)[:, columns]
    positive = values[np.isfinite(values) & (values > 0)]
    lowest = float(positive.min()) if log and len(positive) else 1.0
    logarithmic = log and lowest < 0.1
    bar: dict[str, Any] = {"title": {"text": quantity, "side": "right"}, "thickness": 10}
    colours = values
    if logarithmic:
        floor = float(math.floor(math.log10(lowest)))
        colours = np.log10(np.maximum(values, 10.0**floor))
        ticks = list(range(int(floor), 1))
        texts = [f"{10.0**tick:g}" if tick > -4 else f"10<sup>{tick}</sup>" for tick in ticks]
        bar |= {"tickvals": ticks, "ticktext": texts}
    trace = {
        "type": "heatmap",
        "x": columns if by_snapshot else short([float(steps[i]) for i in columns], 10),
        "y": list(range(len(rows))),
        "z": [short(row, 3) for row in colours],
        "text": [short(row, 3) for row in values] if logarithmic else None,
        "meta": {"rows": [plot_text(row) for row in rows]},
        "zmin": floor,
        "zmax": 0 if logarithmic else 1,
        "colorscale": "heat",
        "colorbar": bar,
        "hovertemplate": f"%{{customdata}}<br>{'snapshot' if by_snapshot else 'step'} %{{x:,}}<br>"
        f"{quantity} %{{{'text' if logarithmic else 'z:.3f'}}}<extra></extra>",
    }
    shown = {key: value for key, value in trace.items() if value is not None}
    marks: dict[str, Any] = {} if by_snapshot else step_ticks(steps)
    x: dict[str, Any] = {"title": {"text": "snapshot" if by_snapshot else "step"}}
    x |= {"showgrid": False, **marks}
    beside: dict[str, Any] = {}
    if len(random):
        x["domain"] = [0, _WIDTH]
        beside["xaxis2"] = _RANDOM_AXIS
    return Figure(
        title=title,
        subtitle=subtitle,
        data=[shown, *([_random_column(shown, random, quantity)] if len(random) else [])],
        layout={"xaxis": x, "yaxis": row_axis(rows), **beside},
        height=90 + max(120, 22 * len(rows)),
        size=size,
        description=f"{title}: {quantity} of {len(rows)} layers at {len(columns)} moments.",
    )


def _random_column(trace: dict[str, Any], values: Sequence[float], quantity: str) -> dict[str, Any]:
    """What random matrices would give, beside the heat map and in its colours."""
    floor = trace["zmin"]
    logarithmic = "text" in trace
    colours = [max(floor, math.log10(v)) if logarithmic else v for v in values]
    return {
        "type": "heatmap",
        "x": ["random"],
        "y": trace["y"],
        "z": [[value] for value in short(colours, 3)],
        "text": [[value] for value in short(values, 3)],
        "meta": trace["meta"],
        "zmin": floor,
        "zmax": trace["zmax"],
        "colorscale": "heat",
        "showscale": False,
        "xaxis": "x2",
        "hovertemplate": f"%{{customdata}}<br>random<br>{quantity} %{{text}}<extra></extra>",
    }


def step_ticks(steps: Sequence[float] | NDArray[np.float64]) -> dict[str, Any]:
    """Ticks for an axis of steps: its own where there is but one, else Plotly's choice."""
    return {"tickvals": [float(steps[0])]} if len(steps) == 1 else {}


def row_axis(rows: Sequence[str]) -> dict[str, Any]:
    """A vertical axis with one row per name, the first on top."""
    return {
        "tickvals": list(range(len(rows))),
        "ticktext": [plot_text(row) for row in rows],
        "range": [len(rows) - 0.5, -0.5],
        "showgrid": False,
        "zeroline": False,
    }


def ramp_legend(first: str, last: str) -> Markup:
    """A legend for lines whose colours run from ``ramp 0`` to ``ramp 1``."""
    return Markup('<span class="ramp">{}<i></i>{}</span>').format(first, last)


def runs_legend(runs: Sequence[Run]) -> Markup:
    """A legend for figures whose lines are the runs, in their colours."""
    keys = (
        Markup('<span><span class="key" data-run="{}"></span>{}</span>').format(position, run.name)
        for position, run in enumerate(runs)
    )
    return Markup("").join(keys)
