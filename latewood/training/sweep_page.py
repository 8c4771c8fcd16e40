"""The page of a sweep: a table of its runs, best first, and a heat map over its two keys."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from latewood.training.report import Figure, Group, Run, Section, write_report
from latewood.training.report.sections.comparison import comparison
from latewood.training.report.sections.learning import learning
from latewood.training.report.words import label, plot_text
from latewood.training.run_folder import RunFolder
from latewood.training.tables import Row, cell

__all__ = ["heat_map", "write_sweep_page"]


def write_sweep_page(
    rows: Sequence[Row],
    keys: Sequence[str],
    headline: str,
    best: RunFolder,
    path: Path,
    *,
    notes: Sequence[str] = (),
) -> Path:
    """Writes a self-contained page about a sweep, which opens with its best run.

    Args:
        rows: the table, best run first.
        keys: the columns that were swept.
        headline: the column that the rows are sorted by.
        best: the run of the first row.
        path: the HTML file.
        notes: lines to set below the table.

    Raises:
        WorkError: the file cannot be written.
    """

    columns = [*keys, *(name for name in rows[0] if name not in ("run", "error", *keys))]
    words = "1 run" if len(rows) == 1 else f"{len(rows)} runs"

    def section(found: Sequence[Run]) -> Section:
        figure = heat_map(rows, keys, headline)
        errors = [f"{row['run']}: {row['error']}" for row in rows if row.get("error")]
        return Section(
            title="All runs",
            lead=f"{words} over {', '.join(keys)}, the best {label(headline)} first. What stands "
            f"above and below is about the best, {best.name}.",
            html=_table(rows, columns),
            groups=[Group(figures=[figure])] if figure else [],
            notes=[*notes, *errors],
        )

    return write_report([best], path, sections=[section, comparison, learning])


def heat_map(rows: Sequence[Row], keys: Sequence[str], headline: str) -> Figure | None:
    """The headline over two swept keys; None if there are not exactly two.

    Where several runs share both values, the first row counts, which is the best.
    """
    if len(keys) != 2:
        return None
    down, across = ([*dict.fromkeys(row.get(key) for row in rows)] for key in keys)
    down, across = sorted(down, key=_order), sorted(across, key=_order)
    best: dict[tuple[object, object], object] = {}
    for row in rows:
        best.setdefault((row.get(keys[0]), row.get(keys[1])), row.get(headline))
    values = [[best.get((one, other)) for other in across] for one in down]
    trace: dict[str, Any] = {
        "type": "heatmap",
        "x": [plot_text(str(value)) for value in across],
        "y": [plot_text(str(value)) for value in down],
        "z": values,
        "text": [["" if value is None else cell(value) for value in line] for line in values],
        "texttemplate": "%{text}",
        "colorscale": "heat",
        "hoverongaps": False,
        "meta": {"rows": [plot_text(str(value)) for value in down]},
    }
    # Settings are labels, not positions on a scale.
    layout = {
        "xaxis": {"type": "category", "title": {"text": plot_text(keys[1])}},
        "yaxis": {"type": "category", "title": {"text": plot_text(keys[0])}},
    }
    return Figure(
        title=f"{label(headline).capitalize()} over {keys[0]} and {keys[1]}",
        data=[trace],
        layout=layout,
        height=120 + 48 * len(down),
        size="full",
    )


def _order(value: object) -> tuple[bool, float, str]:
    numeric = isinstance(value, int | float)
    return (not numeric, float(value) if isinstance(value, int | float) else 0.0, str(value))


def _table(rows: Sequence[Row], columns: Sequence[str]) -> Markup:
    head = Markup("").join(Markup('<th scope="col">{}</th>').format(name) for name in columns)
    body = Markup("").join(
        Markup('<tr><th scope="row">{}</th>{}</tr>').format(
            cell(row.get(columns[0])),
            Markup("").join(Markup("<td>{}</td>").format(cell(row.get(c))) for c in columns[1:]),
        )
        for row in rows
    )
    return Markup(
        '<div class="scroll" tabindex="0"><table class="text"><thead><tr>{}</tr></thead>'
        "<tbody>{}</tbody></table></div>"
    ).format(head, body)
