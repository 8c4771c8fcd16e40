"""What a method reports of every layer: a section of heat maps and curves, a group a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from latewood.report.figures import Line, heat_figure, line_figure, ramp_legend
from latewood.report.grids import grid
from latewood.report.run_data import Run, Series
from latewood.report.section import Figure, Group, Section

__all__ = ["LayerValues", "layer_section"]


@dataclass(frozen=True, kw_only=True)
class LayerValues:
    """A quantity of every layer, and how a heat map shows it.

    Args:
        key: under which methods report it.
        name: in titles.
        quantity: what the colours stand for.
        unit: what counts as the brightest colour.
        log: whether colours follow the logarithm.
    """

    key: str
    name: str
    quantity: str
    unit: float = 1.0
    log: bool = False


def layer_section(
    runs: Sequence[Run],
    values: LayerValues,
    *,
    title: str,
    lead: str,
    missing: str,
    beside: Sequence[LayerValues] = (),
) -> Section | None:
    """Heat maps and curves for each run whose methods report a quantity of their layers.

    Args:
        runs: of the page.
        values: the quantity, drawn as a heat map and as curves.
        title: of the section.
        lead: what it says first.
        missing: what others did not report, in words.
        beside: quantities that have a heat map where a run reports them too.

    Returns:
        The section; None if no run reports the quantity.
    """
    reported = {run.name: layers for run in runs if (layers := run.by_layer("method", values.key))}
    if not reported:
        return None
    groups = [
        Group(
            title=run.name if len(runs) > 1 else "",
            figures=[
                _heat(run, reported[run.name], values),
                *(
                    _heat(run, layers, other)
                    for other in beside
                    if (layers := run.by_layer("method", other.key))
                ),
                _curves(run, reported[run.name], values),
            ],
        )
        for run in runs
        if run.name in reported
    ]
    without = [run.name for run in runs if run.name not in reported]
    return Section(
        title=title,
        lead=lead,
        groups=groups,
        legend=ramp_legend("first layer", "last layer"),
        log_axis=True,
        notes=[f"No {missing} were reported by {', '.join(without)}."] if without else [],
    )


def _heat(run: Run, layers: dict[str, Series], shown: LayerValues) -> Figure:
    steps, values = grid(list(layers.values()))
    return heat_figure(
        f"{shown.name} over depth and time",
        list(layers),
        steps,
        values / shown.unit,
        quantity=shown.quantity,
        snapshots=2 * run.detail.snapshots,
        log=shown.log,
    )


def _curves(run: Run, layers: dict[str, Series], shown: LayerValues) -> Figure:
    lines = [
        Line(
            name=name,
            x=series.steps,
            y=series.values,
            colour=f"ramp {position / max(1, len(layers) - 1):.3f}",
        )
        for position, (name, series) in enumerate(layers.items())
    ]
    title = f"{shown.name} of each layer"
    return line_figure(title, lines, points=run.detail.points // 2, size="full", legend=False)
