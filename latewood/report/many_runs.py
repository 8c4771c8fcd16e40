"""More runs than a page can draw: a few of them in figures, all of them in a table."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from latewood.report.formatting import DASH, label, metric_text
from latewood.report.run_data import Run
from latewood.report.section import Section
from latewood.report.sections.comparison_section import SIZES

__all__ = ["MOST_DRAWN", "chosen", "run_table"]

MOST_DRAWN = 24
"""Runs that a page draws; curves of more cannot be told apart."""


def chosen(runs: Sequence[Run]) -> list[int]:
    """Positions of the runs to draw: the first, which is compared with, and then the best.

    Args:
        runs: without their metrics.

    Returns:
        At most ``MOST_DRAWN`` positions, the first run's first, in the order of the runs.
    """
    if len(runs) <= MOST_DRAWN:
        return list(range(len(runs)))
    best = _best_first(runs)
    return sorted({0, *[position for position in best if position][: MOST_DRAWN - 1]})


def run_table(runs: Sequence[Run]) -> Section:
    """All runs as rows, the best first, with their outcomes and sizes."""
    headlines = list(dict.fromkeys(run.headline for run in runs if run.headline))
    sizes = {key: name for key, name in SIZES.items() if any(key in run.size for run in runs)}
    head = [*(label(name) for name in headlines), *(title for title, _ in sizes.values())]

    def cells(run: Run) -> list[str]:
        value = run.headline_value
        outcome = [
            metric_text(name, value) if name == run.headline and value is not None else DASH
            for name in headlines
        ]
        texts = [
            text(run.size[key]) if key in run.size else DASH for key, (_, text) in sizes.items()
        ]
        return outcome + texts

    body = Markup("").join(
        Markup('<tr><th scope="row">{}</th>{}</tr>').format(
            runs[position].name,
            Markup("").join(Markup("<td>{}</td>").format(text) for text in cells(runs[position])),
        )
        for position in _best_first(runs)
    )
    columns = Markup("").join(Markup('<th scope="col">{}</th>').format(name) for name in head)
    table = Markup(
        '<div class="scroll" tabindex="0"><table class="text"><thead><tr><th scope="col">run</th>{}'
        "</tr></thead><tbody>{}</tbody></table></div>"
    ).format(columns, body)
    lead = (
        f"{len(runs)} runs, the best first. What follows draws {MOST_DRAWN} of them: the first "
        f"given, {runs[0].name}, and the best."
    )
    return Section(title="All runs", lead=lead, html=table)


def _best_first(runs: Sequence[Run]) -> list[int]:
    """Positions by the headline; runs without an outcome last, in their order."""

    def rank(position: int) -> tuple[bool, float]:
        run = runs[position]
        value = run.headline_value
        unknown = value is None or value != value
        return (unknown, 0.0 if unknown else (-1 if run.higher_is_better else 1) * (value or 0.0))

    return sorted(range(len(runs)), key=rank)
