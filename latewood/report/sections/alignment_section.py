"""Whether what one layer writes most is what the next one reads most, over depth and time."""

from __future__ import annotations

from collections.abc import Sequence

from latewood.report.figures import heat_figure
from latewood.report.grids import grid
from latewood.report.run_data import AlignedPair, Run, Series
from latewood.report.section import Figure, Group, Section

__all__ = ["alignment"]

_LEAD = (
    "Alignment is the mean of |u·v| over the first ten left singular vectors of a layer and right "
    "ones of the next: 1 when one writes exactly what the other reads, near 0 when the two have "
    "nothing to do with each other. Residual connections are ignored."
)


def alignment(runs: Sequence[Run]) -> Section | None:
    """Heat maps of every run's pairs; None if no probe measured any."""
    shown = [run for run in runs if run.aligned]
    if not shown:
        return None
    several = len(runs) > 1
    overview, numbered = (
        [_overview(run, several=several, by_snapshot=numbered_axis) for run in shown]
        for numbered_axis in (False, True)
    )
    single = [_single(pair, run, several=several) for run in shown for pair in run.aligned]
    without = [run.name for run in runs if not run.aligned]
    notes = [
        "The column beside a heat map is the mean over random directions of the same dimension. "
        "Convolutions are read at the centre of their kernel, and recurrent layers written at one "
        "gate, so that even layers that fit each other stay below 1."
    ]
    if without:
        notes.append(f"No probe measured the alignment of {', '.join(without)}.")
    return Section(
        title="Alignment of consecutive layers",
        lead=_LEAD,
        groups=[
            Group(figures=overview),
            Group(title="By number of the snapshot", figures=numbered, opened=False),
            Group(title="Each pair of vectors", figures=single, opened=len(single) <= 4),
        ],
        notes=notes,
    )


def _overview(run: Run, *, several: bool, by_snapshot: bool) -> Figure:
    steps, values = grid([Series(pair.steps, pair.scores) for pair in run.aligned])
    return heat_figure(
        f"Alignment over depth and {'snapshots' if by_snapshot else 'time'}",
        [pair.name for pair in run.aligned],
        steps,
        values,
        quantity="alignment",
        snapshots=2 * run.detail.snapshots,
        subtitle=run.name if several else "",
        random=[pair.random for pair in run.aligned],
        by_snapshot=by_snapshot,
    )


def _single(pair: AlignedPair, run: Run, *, several: bool) -> Figure:
    count = pair.diagonals.shape[1]
    return heat_figure(
        pair.name,
        [f"pair {index + 1}" for index in range(count)],
        pair.steps,
        pair.diagonals.T,
        quantity="alignment",
        snapshots=run.detail.snapshots,
        size="half",
        subtitle=run.name if several else "",
        random=[pair.random] * count,
    )
