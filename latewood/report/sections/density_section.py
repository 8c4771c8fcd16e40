"""The masks of every layer over the steps: what they keep, and what they have not decided."""

from __future__ import annotations

from collections.abc import Sequence

from latewood.report.figures import Line, heat_figure, line_figure, ramp_legend
from latewood.report.grids import grid
from latewood.report.run_data import Run, Series
from latewood.report.section import Group, Section

__all__ = ["density"]


def density(runs: Sequence[Run]) -> Section | None:
    """Heat maps and curves for each run whose methods report densities; None if none does."""
    densities = {run.name: layers for run in runs if (layers := run.by_layer("method", "density"))}
    if not densities:
        return None
    groups = [
        _group(run, densities[run.name], several=len(runs) > 1)
        for run in runs
        if run.name in densities
    ]
    without = [run.name for run in runs if run.name not in densities]
    return Section(
        title="Masks by layer",
        lead="The share of each layer's weights that the method keeps and, for masks that are "
        "learned, the share still undecided between kept and pruned; from the first layer to the "
        "last.",
        groups=groups,
        legend=ramp_legend("first layer", "last layer"),
        log_axis=True,
        notes=[f"No densities were reported by {', '.join(without)}."] if without else [],
    )


def _group(run: Run, layers: dict[str, Series], *, several: bool) -> Group:
    steps, values = grid(list(layers.values()))
    heat = heat_figure(
        "Density over depth and time",
        list(layers),
        steps,
        values,
        quantity="density",
        snapshots=2 * run.detail.snapshots,
        log=True,
    )
    figures = [heat]
    undecided = run.by_layer("method", "undecided")
    if undecided:
        moments, shares = grid(list(undecided.values()))
        figures.append(
            heat_figure(
                "Undecided over depth and time",
                list(undecided),
                moments,
                shares,
                quantity="undecided",
                snapshots=2 * run.detail.snapshots,
                log=True,
            )
        )
    lines = [
        Line(
            name=name,
            x=series.steps,
            y=series.values,
            colour=f"ramp {position / max(1, len(layers) - 1):.3f}",
        )
        for position, (name, series) in enumerate(layers.items())
    ]
    curves = line_figure(
        "Density of each layer",
        lines,
        points=run.detail.points // 2,
        size="full",
        legend=False,
    )
    return Group(title=run.name if several else "", figures=[*figures, curves])
