"""Loss, headline and the other metrics over the steps, in training and in validation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from latewood.report.figures import Line, line_figure
from latewood.report.formatting import is_share, label
from latewood.report.run_data import Run
from latewood.report.sampling import bucket_means
from latewood.report.section import Figure, Group, Section

__all__ = ["learning"]

# Further training scalars are not measures of learning; the schedules section draws them.
_BOTH = "loss"
_TREND = 80


def learning(runs: Sequence[Run]) -> Section | None:
    """One figure for the loss, one for each metric of validation."""
    validated = dict.fromkeys(name for run in runs for name in run.names("validation"))
    headlines = dict.fromkeys(run.headline for run in runs if run.headline)
    names = dict.fromkeys([*headlines, _BOTH, *validated])
    figures = [figure for name in names if (figure := _figure(name, runs)) is not None]
    if not figures:
        return Section(title="Learning", lead="No metrics were written, so there are no curves.")
    lead = "Training losses are means over the steps since the point before"
    if len(runs) > 1:
        lead = "Of training, the trend is drawn"
    lead += "; validation covers the whole set." if validated else "; there was no validation yet."
    return Section(title="Learning", lead=lead, groups=[Group(figures=figures)], log_axis=True)


def _figure(name: str, runs: Sequence[Run]) -> Figure | None:
    several = len(runs) > 1
    lines: list[Line] = []
    for position, run in enumerate(runs):
        lines += _lines(run, name, f"run {position}", several=several)
    if not lines:
        return None
    percent = is_share(name) and all(np.nanmax(line.y, initial=0) <= 1 for line in lines)
    title = label(name).capitalize()
    return line_figure(title, lines, points=runs[0].detail.points, percent=percent)


def _lines(run: Run, name: str, colour: str, *, several: bool) -> list[Line]:
    training, validation = run.series("train", name), run.series("validation", name)
    if training is None:  # scored on its whole set, as validation is
        training = run.series("training", name)
    lines = []
    if training is not None and not several and len(training.steps) > _TREND:
        x, y = training.steps, training.values
        lines.append(Line(name="as written", x=x, y=y, colour="muted", faint=True))
    if training is not None:
        x, y = bucket_means(training.steps, training.values, _TREND)
        lines.append(
            Line(
                name=f"{run.name} · training" if several else "training",
                x=x,
                y=y,
                colour=colour if several else "run 2",
                faint=several and validation is not None,
                group=run.name if several else "",
            )
        )
    if validation is not None:
        alone = run.name if training is None else f"{run.name} · validation"
        lines.append(
            Line(
                name=alone if several else "validation",
                x=validation.steps,
                y=validation.values,
                colour=colour,
                markers=True,
                group=run.name if several else "",
            )
        )
    return lines
