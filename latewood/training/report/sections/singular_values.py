"""The singular values of every weight matrix over the steps: one panel a layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from latewood.spectra import random_effective_rank
from latewood.training.report.figures import ramp_legend, step_ticks
from latewood.training.report.runs import Layer, Run
from latewood.training.report.sampling import Detail, evenly, leading_and_even, short
from latewood.training.report.section import Figure, Group, Section
from latewood.training.report.words import SIGMA, TIMES, number

__all__ = ["singular_values"]


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
    notes = [
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
