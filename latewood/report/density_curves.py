"""Quality over density: a line for each way to prune, means over the seeds with 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from latewood.core.statistics import half_width, mean
from latewood.report.formatting import SPACE, is_share, metric_text, number, percent, plot_text
from latewood.report.section import Figure

__all__ = ["CurvePoint", "curve_layout", "curve_trace", "density_figure", "with_interval"]

_SYMBOLS = (
    "circle",
    "square",
    "diamond",
    "cross",
    "x",
    "triangle-up",
    "star",
    "triangle-down",
    "pentagon",
    "hexagon",
)

_HUES = 8
"""Colours of the page; a line beyond them repeats one, dotted."""


@dataclass(frozen=True)
class CurvePoint:
    """One network, trained from one or several seeds.

    Args:
        values: the headline of each seed.
        densities: fraction of the weights kept, of each seed.
        lines: what else to say under the pointer.
    """

    values: Sequence[float]
    densities: Sequence[float]
    lines: Sequence[str] = ()

    @property
    def density(self) -> float:
        """Mean density over the seeds."""
        return mean(self.densities)


def density_figure(
    title: str,
    headline: str,
    curves: Mapping[str, Sequence[CurvePoint]],
    *,
    dense: CurvePoint | None = None,
) -> Figure:
    """The headline against density, on a logarithmic axis.

    Args:
        title: caption.
        headline: name of the measure.
        curves: the networks of each way to prune, by what the legend calls it.
        dense: the network with all its weights, drawn as a level.
    """
    data: list[dict[str, Any]] = []
    for place, (name, points) in enumerate(curves.items()):
        ordered = sorted(points, key=lambda point: point.density)
        if any(len(point.values) > 1 for point in ordered):
            data.append(_single_seeds(name, ordered, place))
        across = [point.density for point in ordered]
        data.append(curve_trace(headline, name, ordered, place, across, joined=True))
    if dense is not None and curves:
        least = min(point.density for points in curves.values() for point in points)
        data.append(_level(headline, dense, [least, 1.0]))
    axis = {"type": "log", "title": {"text": "density"}, "tickformat": "~%", "dtick": "D2"}
    return Figure(
        title=title,
        data=data,
        layout=curve_layout(headline) | {"xaxis": axis},
        height=440,
        size="full",
        description=f"{title}: {', '.join(curves)}.",
    )


def curve_layout(headline: str) -> dict[str, Any]:
    """What figures of such points have in common: a legend, and an axis of the headline."""
    return {
        "hovermode": "closest",
        "showlegend": True,
        "yaxis": {"tickformat": ".0%" if is_share(headline) else ""},
        "margin": {"t": 28},
    }


def curve_trace(
    headline: str,
    name: str,
    points: Sequence[CurvePoint],
    place: int,
    across: Sequence[float],
    *,
    joined: bool,
) -> dict[str, Any]:
    """The means of some networks with their intervals.

    Args:
        headline: name of the measure.
        name: what the legend calls them.
        points: the networks.
        place: number of the line, which decides colour and symbol.
        across: (points,) horizontal positions.
        joined: whether a line joins them.
    """
    colour = f"run {place}"
    return {
        "type": "scatter",
        "mode": "lines+markers" if joined and len(points) > 1 else "markers",
        "name": plot_text(name),
        "legendgroup": plot_text(name),
        "x": list(across),
        "y": [mean(point.values) for point in points],
        "error_y": _intervals(headline, points) | {"color": colour},
        "line": {"color": colour, "width": 2, "dash": "solid" if place < _HUES else "dot"},
        "marker": {"color": colour, "size": 9, "symbol": _SYMBOLS[place % len(_SYMBOLS)]},
        "customdata": [_under_pointer(headline, point) for point in points],
        "hovertemplate": "%{customdata}",
    }


def with_interval(name: str, values: Sequence[float]) -> str:
    """A measure's mean over the seeds with the half-width of its 95 % interval, as text."""
    width = half_width(values)
    if not math.isfinite(width):
        return metric_text(name, mean(values))
    if is_share(name):
        return f"{100 * mean(values):.2f} ± {100 * width:.2f}{SPACE}%"
    return f"{number(mean(values))} ± {number(width, 2)}"


def _intervals(headline: str, points: Sequence[CurvePoint]) -> dict[str, Any]:
    """95 % intervals, cut at 0 and 1 where the measure is a share."""
    up, down = [], []
    for point in points:
        centre, width = mean(point.values), half_width(point.values)
        width = width if math.isfinite(width) else 0.0
        within = is_share(headline) and 0 <= centre <= 1
        up.append(min(width, 1 - centre) if within else width)
        down.append(min(width, centre) if within else width)
    return {
        "type": "data",
        "symmetric": False,
        "array": up,
        "arrayminus": down,
        "thickness": 1.2,
        "width": 3,
    }


def _single_seeds(name: str, points: Sequence[CurvePoint], place: int) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [density for point in points for density in point.densities],
        "y": [value for point in points for value in point.values],
        "legendgroup": plot_text(name),
        "showlegend": False,
        "hoverinfo": "skip",
        "opacity": 0.3,
        "marker": {
            "color": f"run {place}",
            "size": 5,
            "symbol": _SYMBOLS[place % len(_SYMBOLS)],
        },
    }


def _level(headline: str, point: CurvePoint, across: Sequence[float]) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "dense",
        "x": list(across),
        "y": [mean(point.values)] * len(across),
        "line": {"color": "muted", "width": 1.6, "dash": "dash"},
        "customdata": [_under_pointer(headline, point)] * len(across),
        "hovertemplate": "%{customdata}",
    }


def _under_pointer(headline: str, point: CurvePoint) -> str:
    shown = [with_interval(headline, point.values), f"{percent(point.density)} of the weights"]
    return "<br>".join(plot_text(line) for line in (*shown, *point.lines) if line)
