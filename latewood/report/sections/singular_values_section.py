"""The singular values of every weight matrix over the steps: one panel a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from latewood.report.figures import ramp_legend, step_ticks
from latewood.report.formatting import SIGMA, TIMES, number
from latewood.report.run_data import Layer, Run
from latewood.report.sampling import Detail, evenly, leading_and_even, short
from latewood.report.section import Figure, Group, Section
from latewood.spectra import random_effective_rank

__all__ = ["singular_values"]

_MOST_PLACES = 256


def singular_values(runs: Sequence[Run]) -> Section | None:
    """Panels in the order of the model, coloured by rank; None if no run kept its spectra."""
    shown = [run for run in runs if run.layers]
    if not shown:
        return None
    several = len(runs) > 1
    groups = [
        Group(
            title=run.name if several else "",
            opened=position == 0,
            figures=[_panel(layer, run.detail) for layer in _chosen(run)],
        )
        for position, run in enumerate(shown)
    ]
    groups.append(
        Group(
            title="Every singular value",
            opened=False,
            figures=[_map(layer, run, several=several) for run in shown for layer in _chosen(run)],
        )
    )
    notes = [
        "The dashed lines enclose the singular values of a large random matrix of the same shape "
        "and norm (Marchenko-Pastur law, the quarter circle for square ones).",
    ]
    notes += [
        f"Of the {len(run.layers)} matrices of {run.name}, {run.detail.layers} are drawn, evenly "
        "over the depth."
        for run in shown
        if len(run.layers) > run.detail.layers
    ]
    hidden = [run.name for run in runs[runs[0].detail.runs :]]
    if hidden:
        notes.append(f"To keep the page small, the spectra of {', '.join(hidden)} are left out.")
    return Section(
        title="Singular values",
        lead="One panel for each weight matrix; each line is one singular value. The largest are "
        "strongest in colour. Above each panel: the matrix, its effective rank at the first and at "
        "the last snapshot, and that of a random matrix of its shape.",
        groups=groups,
        legend=ramp_legend("largest", "smallest"),
        log_axis=True,
        notes=notes,
    )


def _chosen(run: Run) -> list[Layer]:
    return [run.layers[i] for i in evenly(len(run.layers), run.detail.layers)]


def _map(layer: Layer, run: Run, *, several: bool) -> Figure:
    """All singular values, relative to the largest of all times, by their place and the step."""
    places = evenly(layer.values.shape[1], _MOST_PLACES)
    values = layer.values[:, places].T
    finite = values[np.isfinite(values)]
    top = float(finite.max()) if len(finite) and finite.max() > 0 else 1.0
    floor = -3.0
    colours = np.log10(np.maximum(values / top, 10.0**floor))
    trace = {
        "type": "heatmap",
        "x": short(layer.steps, 10),
        "y": [place + 1 for place in places],
        "z": [short(row, 3) for row in colours],
        "zmin": floor,
        "zmax": 0,
        "colorscale": "heat",
        "colorbar": {
            "thickness": 8,
            "tickvals": [-3, -2, -1, 0],
            "ticktext": ["\N{LESS-THAN OR EQUAL TO}0.001", "0.01", "0.1", "1"],
        },
        "hovertemplate": f"{SIGMA}<sub>%{{y}}</sub><br>step %{{x:,}}<br>"
        "10<sup>%{z:.2f}</sup> of the largest<extra></extra>",
    }
    return Figure(
        title=layer.name,
        subtitle=run.name if several else "",
        data=[trace],
        layout={
            "xaxis": {"title": {"text": "step"}, "showgrid": False} | step_ticks(layer.steps),
            "yaxis": {"title": {"text": "place"}, "autorange": "reversed", "showgrid": False},
            "hovermode": "closest",
        },
        height=240,
        size="panel",
        description=f"All singular values of {layer.name} over the steps, relative to the largest.",
    )


def _random_edges(layer: Layer) -> list[dict[str, Any]]:
    """The range of a large random matrix's singular values at the same norm, as two lines."""
    long, short_side = max(layer.shape[-2:]), min(layer.shape[-2:])
    scale = np.sqrt(np.square(layer.values).sum(1) / (long * short_side))
    # The smallest of a square matrix is not zero but of the order of 1 / sqrt(n).
    lower = max(long**0.5 - short_side**0.5, long**-0.5)
    upper = long**0.5 + short_side**0.5
    return [
        {
            "type": "scatter",
            "mode": "lines" if len(layer.steps) > 1 else "markers",
            "name": f"random, {name}",
            "y": short(edge * scale),
            "line": {"color": "ink", "width": 1, "dash": "dot"},
            "marker": {"color": "ink", "size": 5, "symbol": "line-ew-open"},
            "hovertemplate": f"random, {name} %{{y:.4~g}}<br>step %{{x:,}}<extra></extra>",
        }
        for name, edge in (("smallest", lower), ("largest", upper))
    ]


def _panel(layer: Layer, detail: Detail) -> Figure:
    rank = layer.values.shape[1]
    data = [
        {
            "type": "scatter",
            "mode": "lines" if len(layer.steps) > 1 else "markers",
            "name": f"{SIGMA}{index + 1}",
            "y": short(layer.values[:, index]),
            "line": {"color": f"ramp {index / max(1, rank - 1):.3f}", "width": 1.4},
            "marker": {"color": f"ramp {index / max(1, rank - 1):.3f}", "size": 5},
            "hovertemplate": f"{SIGMA}<sub>{index + 1}</sub> %{{y:.4~g}}<br>step %{{x:,}}"
            "<extra></extra>",
        }
        # From the smallest to the largest, so that the largest lie on top.
        for index in reversed(leading_and_even(rank, detail.ranks))
    ]
    data += _random_edges(layer)
    first, last = layer.ranks[0], layer.ranks[-1]
    random = random_effective_rank(*layer.shape[-2:])
    shape = TIMES.join(str(side) for side in layer.shape)
    way = f"{_rank(first)} → {_rank(last)}" if len(layer.steps) > 1 else _rank(last)
    return Figure(
        title=layer.name,
        subtitle=f"{shape} · rank {way} · random {random:.2f}",
        data=data,
        layout={
            "xaxis": step_ticks(layer.steps),
            "showlegend": False,
            "hovermode": "closest",
            "margin": {"t": 6, "r": 14},
        },
        shared_x=[step for step in short(layer.steps, 10) if step is not None],
        height=190,
        size="panel",
        description=f"Singular values of {layer.name} over the steps; effective rank {way}.",
    )


def _rank(value: float) -> str:
    return f"{value:.2f}" if np.isfinite(value) else number(value)
