"""How the effective rank of every weight matrix changes, against that of random matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from latewood.report.figures import heat_figure, row_axis
from latewood.report.formatting import plot_text
from latewood.report.grids import grid
from latewood.report.run_data import Layer, Run, Series
from latewood.report.sampling import short
from latewood.report.section import Figure, Group, Section
from latewood.spectra import random_effective_rank

__all__ = ["effective_rank"]

_LEAD = (
    "The effective rank is the exponential of the entropy of a matrix's singular values, divided "
    "by their number: 1 when all directions count alike, near 0 when a few do all the work."
)


def effective_rank(runs: Sequence[Run]) -> Section:
    """A heat map over depth and time and the way from the first snapshot to the last."""
    by_run = {run.name: _ranks(run) for run in runs}
    if not any(by_run.values()):
        return Section(
            title="Effective rank",
            lead="No spectral probe took part, so nothing is known about the weights' spectra. "
            'Add a probe named "spectral" to the recipe to see them here.',
        )
    several = len(runs) > 1
    floor = _floor([series for ranks in by_run.values() for series in ranks.values()])
    shown = [run for run in runs if by_run[run.name]]
    heats, numbered = (
        [
            _heat(run, by_run[run.name], floor, several=several, by_snapshot=numbered_axis)
            for run in shown
        ]
        for numbered_axis in (False, True)
    )
    journeys = _journeys(runs, floor)
    without = [run.name for run in runs if not by_run[run.name]]
    notes = [f"Nothing is known about the spectra of {', '.join(without)}."] if without else []
    notes += [
        f"Of {run.name} there is only one snapshot, at step {series.steps[0]:,.0f}; a smaller "
        '"every" of the probe shows how its spectra change.'
        for run in runs
        if by_run[run.name] and len((series := next(iter(by_run[run.name].values()))).steps) == 1
    ]
    if journeys is not None:
        notes.insert(
            0,
            "The baseline is what large matrices of the same shape with independent random entries "
            "have (Marchenko-Pastur law; 0.805 for square ones).",
        )
    figures = [*heats, *([journeys] if journeys is not None else [])]
    groups = [
        Group(figures=figures),
        Group(title="By number of the snapshot", figures=numbered, opened=False),
    ]
    return Section(title="Effective rank", lead=_LEAD, groups=groups, notes=notes)


def _ranks(run: Run) -> dict[str, Series]:
    if run.layers:
        return {layer.name: Series(layer.steps, layer.ranks) for layer in run.layers}
    return run.by_layer("probe", "effective_rank")


def _floor(series: Sequence[Series]) -> float:
    """The tenth below all values, so that small differences near 1 are still seen."""
    values = np.concatenate([one.values for one in series])
    finite = values[np.isfinite(values)]
    return float(np.floor(10 * finite.min()) / 10) if len(finite) else 0.0


def _heat(
    run: Run, ranks: dict[str, Series], floor: float, *, several: bool, by_snapshot: bool
) -> Figure:
    steps, values = grid(list(ranks.values()))
    return heat_figure(
        f"Effective rank over depth and {'snapshots' if by_snapshot else 'time'}",
        list(ranks),
        steps,
        values,
        quantity="effective rank",
        snapshots=2 * run.detail.snapshots,
        floor=min(floor, 0.9),
        subtitle=run.name if several else "",
        random=[random_effective_rank(*layer.shape[-2:]) for layer in run.layers],
        by_snapshot=by_snapshot,
    )


def _journeys(runs: Sequence[Run], floor: float) -> Figure | None:
    if not any(run.layers for run in runs):
        return None
    names = list(dict.fromkeys(layer.name for run in runs for layer in run.layers))
    positions = {name: position for position, name in enumerate(names)}
    shapes = {layer.name: layer.shape for run in runs for layer in run.layers}
    data: list[dict[str, Any]] = []
    for index, run in enumerate(runs):
        data += _journey(run.layers, positions, run.name, f"run {index}", alone=len(runs) == 1)
    random = [random_effective_rank(*shapes[name][-2:]) for name in names]
    baseline = {
        "type": "scatter",
        "mode": "markers",
        "name": "random matrix",
        "x": short(random),
        "y": list(range(len(names))),
        "marker": {"symbol": "line-ns", "size": 12, "line": {"width": 2, "color": "ink"}},
        "hovertemplate": "random %{x:.3f}<extra></extra>",
    }
    return Figure(
        title="From the first snapshot to the last",
        data=[*data, baseline],
        layout={
            "xaxis": {
                "title": {"text": "effective rank"},
                "range": [min(floor, 0.9) - 0.02, 1.02],
                "showgrid": True,
            },
            "yaxis": row_axis(names) | {"showgrid": True},
            "showlegend": True,
            "hovermode": "closest",
        },
        height=120 + max(120, 22 * len(names)),
        size="full",
        description="Effective rank of every layer at the first and at the last snapshot, with "
        "the value of random matrices.",
    )


def _journey(
    layers: Sequence[Layer], positions: dict[str, int], name: str, colour: str, *, alone: bool
) -> list[dict[str, Any]]:
    rows = [positions[layer.name] for layer in layers]
    first = short([float(layer.ranks[0]) for layer in layers])
    last = short([float(layer.ranks[-1]) for layer in layers])
    group = plot_text(name)
    way = {
        "type": "scatter",
        "mode": "lines",
        "x": [v for pair in zip(first, last, strict=True) for v in (*pair, None)],
        "y": [v for row in rows for v in (row, row, None)],
        "line": {"color": colour, "width": 2},
        "opacity": 0.5,
        "showlegend": False,
        "legendgroup": group,
        "hoverinfo": "skip",
    }
    ends = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": when if alone else f"{group} · {when}",
            "x": values,
            "y": rows,
            "marker": {"size": 9, "symbol": symbol, "color": colour},
            "legendgroup": when if alone else group,
            "meta": {"rows": [plot_text(layer.name) for layer in layers]},
            "hovertemplate": f"%{{customdata}}<br>{when} %{{x:.3f}}<extra></extra>",
        }
        for when, values, symbol in (
            ("first", first, "circle-open"),
            ("last", last, "circle"),
        )
    ]
    return [way, *ends]
