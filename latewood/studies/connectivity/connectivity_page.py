"""The page of two connected networks: scores along the line, and agreement weight by weight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from latewood.report import Figure, Group, Section
from latewood.report.formatting import is_share, metric_text, number, plot_text
from latewood.report.headline import Headline, Tile
from latewood.report.report import write_page
from latewood.studies.connectivity.connected_networks import (
    AS_THEY_ARE,
    PERMUTED,
    WHOLE,
    Connected,
)

__all__ = ["write_connection_page"]

_TRUNCATED = " On dashed lines every matrix but the head's has the top part of its spectrum only."
_COLOURS = {AS_THEY_ARE: "run 0", PERMUTED: "run 1"}


def write_connection_page(connected: Connected, path: Path) -> Path:
    """Writes a self-contained page with every curve and every agreement.

    Args:
        connected: of two networks.
        path: the HTML file.

    Returns:
        ``path``.

    Raises:
        WorkError: the file cannot be written.
    """
    names = list(connected.lines[AS_THEY_ARE].scores)
    line = Section(
        title="On the line between them",
        lead="Each point is a network whose entries, running statistics included, are mixed from "
        "both; batch norms are measured anew at each. The dotted line joins the ends: how far the "
        "curve rises above it is the barrier." + (_TRUNCATED if connected.truncated else ""),
        groups=[Group(figures=[_curve(connected, name) for name in names])],
    )
    agreement = Section(
        title="Agreement of singular vectors",
        lead="The mean of |u·u'| |v·v'| over the first ten pairs of singular vectors of a weight "
        "in both networks: 1 when they are the same.",
        groups=[Group(figures=[_agreement(connected)])],
        notes=["The dashes are what unrelated matrices of these shapes have on average."],
    )
    return write_page(_headline(connected), [line, agreement], path)


def _headline(connected: Connected) -> Headline:
    line = connected.lines[AS_THEY_ARE]
    tiles = [
        Tile(metric_text(name, line.barrier(name)), f"barrier of the {name}")
        for name in line.scores
    ][:4]
    if PERMUTED in connected.lines:
        value = connected.lines[PERMUTED].barrier("train loss")
        tiles.append(Tile(number(value), "barrier of the train loss", "channels permuted"))
    if connected.truncated:
        value = connected.truncated[AS_THEY_ARE].barrier("train loss")
        note = f"truncated to {connected.fraction:.0%} of all singular values"
        tiles.append(Tile(number(value), "barrier of the train loss", note))
    headline = f"A barrier of {number(line.barrier('train loss'))} in the training loss"
    lead = f"{connected.first} and {connected.second}, scored on {connected.task}."
    return Headline(headline, lead, tuple(tiles))


def _curve(connected: Connected, name: str) -> Figure:
    data: list[dict[str, Any]] = []
    value = "%{y:.2%}" if is_share(name) else "%{y:.4~g}"
    for order, spectra, line in connected.walks():
        whole = spectra == WHOLE
        scores = line.scores[name]
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": plot_text(f"channels {order}" + ("" if whole else f", {spectra}")),
                "x": list(line.alphas),
                "y": list(scores),
                "line": {
                    "color": _COLOURS[order],
                    "width": 2.25,
                    "dash": "solid" if whole else "dash",
                },
                "marker": {"color": _COLOURS[order], "size": 5},
                "hovertemplate": f"{value}<br>position %{{x:.2f}}",
            }
        )
    ends = connected.lines[AS_THEY_ARE].scores[name]
    data.append(
        {
            "type": "scatter",
            "mode": "lines",
            "name": "between the ends",
            "x": [0, 1],
            "y": [ends[0], ends[-1]],
            "line": {"color": "muted", "width": 1.2, "dash": "dot"},
            "hoverinfo": "skip",
            "showlegend": False,
        }
    )
    return Figure(
        title=name.capitalize(),
        data=data,
        layout={
            "showlegend": len(list(connected.walks())) > 1,
            "xaxis": {"title": {"text": "position: 0 is the first network, 1 the second"}},
            "yaxis": {"tickformat": ".1%" if is_share(name) else ""},
        },
        description=f"{name} at {len(ends)} positions between two networks.",
    )


def _agreement(connected: Connected) -> Figure:
    weights = list(connected.agreements[AS_THEY_ARE])
    places = list(range(len(weights)))
    data: list[dict[str, Any]] = [
        _points(
            f"channels {order}",
            [float(agreements[name].score.mean()) for name in weights],
            {"color": _COLOURS[order], "size": 9},
        )
        for order, agreements in connected.agreements.items()
    ]
    baselines = [connected.agreements[AS_THEY_ARE][name].baseline for name in weights]
    data.append(_points("unrelated", baselines, {"color": "muted", "size": 9, "symbol": "line-ns"}))
    return Figure(
        title="Agreement by weight",
        data=data,
        layout={
            "showlegend": True,
            "xaxis": {"title": {"text": "agreement"}, "range": [-0.02, 1.02]},
            "yaxis": {
                "tickvals": places,
                "ticktext": [plot_text(name) for name in weights],
                "range": [len(weights) - 0.5, -0.5],
            },
        },
        height=110 + max(120, 24 * len(weights)),
        size="full",
        description=f"Agreement of {len(weights)} weights.",
    )


def _points(name: str, values: list[float], marker: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": values,
        "y": list(range(len(values))),
        "marker": {**marker, "line": {"width": 2, "color": marker["color"]}},
        "hovertemplate": "%{x:.3f}",
    }
