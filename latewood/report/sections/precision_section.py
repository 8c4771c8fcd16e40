"""The bits of every layer over the steps, and what their average was asked to be."""

from __future__ import annotations

from collections.abc import Sequence

from latewood.precision.number_format import MOST_BITS
from latewood.report.figures import Line, heat_figure, line_figure, ramp_legend
from latewood.report.grids import grid
from latewood.report.run_data import Run, Series
from latewood.report.section import Group, Section

__all__ = ["precision"]


def precision(runs: Sequence[Run]) -> Section | None:
    """Heat maps and curves for each run whose methods report bits; None if none does."""
    bits = {run.name: layers for run in runs if (layers := run.by_layer("method", "bits"))}
    if not bits:
        return None
    groups = [
        _group(run, bits[run.name], several=len(runs) > 1) for run in runs if run.name in bits
    ]
    without = [run.name for run in runs if run.name not in bits]
    return Section(
        title="Bits by layer",
        lead="The average bits of each layer's weights: as learned while there is noise, and as "
        "fixed once they have snapped; from the first layer to the last.",
        groups=groups,
        legend=ramp_legend("first layer", "last layer"),
        log_axis=True,
        notes=[f"No bits were reported by {', '.join(without)}."] if without else [],
    )


def _group(run: Run, layers: dict[str, Series], *, several: bool) -> Group:
    steps, values = grid(list(layers.values()))
    heat = heat_figure(
        "Bits over depth and time",
        list(layers),
        steps,
        values / MOST_BITS,
        quantity="bits / 8",
        snapshots=2 * run.detail.snapshots,
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
        "Bits of each layer", lines, points=run.detail.points // 2, size="full", legend=False
    )
    return Group(title=run.name if several else "", figures=[heat, curves])
