"""Loss, headline and the other metrics over the steps, in training and in validation."""

from __future__ import annotations

from collections.abc import Sequence

from latewood.training.report.figures import Line, line_figure
from latewood.training.report.runs import Run
from latewood.training.report.sampling import bucket_means
from latewood.training.report.section import Figure, Group, Section
from latewood.training.report.words import is_share, label

__all__ = ["learning"]

# Further training scalars are not measures of learning; the schedules section draws them.
_BOTH = "loss"
_TREND = 120


def learning(runs: Sequence[Run]) -> Section | None:
    """One figure for the loss, one for each metric of validation."""
    validated = dict.fromkeys(name for run in runs for name in run.names("validation"))
    headlines = dict.fromkeys(run.headline for run in runs if run.headline)
    names = dict.fromkeys([*headlines, _BOTH, *validated])
    figures = [figure for name in names if (figure := _figure(name, runs)) is not None]
    if not figures:
        return Section(title="Learning", lead="No metrics were written, so there are no curves.")
    lead = "Training losses are those of single batches; validation covers the whole set."
    if len(runs) > 1:
        lead = "Of training, the trend is drawn; validation covers the whole set."
    if not validated:
        lead = "There was no validation yet; only the loss of training batches is shown."
    return Section(
        title="Learning", lead=lead, groups=[Group(figures=figures)], log_axis=bool(figures)
    )


def _figure(name: str, runs: Sequence[Run]) -> Figure | None:
    lines = []
    for position, run in enumerate(runs):
        colour = f"run {position}"
        training, validation = run.series("train", name), run.series("validation", name)
        before = f"{run.name} · " if len(runs) > 1 else ""
        if training is not None and len(runs) == 1:
            shade = {"x": training.steps, "y": training.values}
            lines.append(Line(name="batch", colour="muted", faint=True, **shade))
        if training is not None:
            x, y = bucket_means(training.steps, training.values, _TREND)
            shown = "training" if len(runs) == 1 else f"{before}training"
            pale = len(runs) > 1 and validation is not None
            hue = "run 2" if len(runs) == 1 else colour
            lines.append(
                Line(name=shown, x=x, y=y, colour=hue, faint=pale, group=run.name + before)
            )
        if validation is not None:
            lines.append(
                Line(
                    name=f"{before}validation"
                    if training is not None
                    else before[:-3] or "validation",
                    x=validation.steps,
                    y=validation.values,
                    colour=colour,
                    markers=True,
                    group=run.name + before,
                )
            )
    if not lines:
        return None
    percent = is_share(name) and all(max(line.y) <= 1 for line in lines)
    title = label(name).capitalize()
    return line_figure(title, lines, points=runs[0].detail.points, percent=percent)
