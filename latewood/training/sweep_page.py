"""The page of a sweep: a table of its runs, quality over density, a heat map over two keys."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from latewood.training.report import Figure, Group, Run, Section, write_report
from latewood.training.report.density_curves import CurvePoint, density_figure
from latewood.training.report.sections.comparison import comparison
from latewood.training.report.sections.learning import learning
from latewood.training.report.words import label, plot_text
from latewood.training.run_folder import RunFolder
from latewood.training.tables import Row, cell

__all__ = ["density_curve", "heat_map", "write_sweep_page"]

_SEEDS = ("seed", "order_seed")


def write_sweep_page(
    rows: Sequence[Row],
    keys: Sequence[str],
    headline: str,
    best: RunFolder,
    path: Path,
    *,
    methods: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> Path:
    """Writes a self-contained page about a sweep, which opens with its best run.

    Args:
        rows: the table, best run first.
        keys: the columns that were swept.
        headline: the column that the rows are sorted by.
        best: the run of the first row.
        path: the HTML file.
        methods: the names of each row's methods, "" for none.
        notes: lines to set below the table.

    Raises:
        WorkError: the file cannot be written.
    """

    columns = [*keys, *(name for name in rows[0] if name not in ("run", "error", *keys))]
    words = "1 run" if len(rows) == 1 else f"{len(rows)} runs"

    def section(found: Sequence[Run]) -> Section:
        figures = [heat_map(rows, keys, headline), density_curve(rows, keys, headline, methods)]
        drawn = [figure for figure in figures if figure is not None]
        errors = [f"{row['run']}: {row['error']}" for row in rows if row.get("error")]
        return Section(
            title="All runs",
            lead=f"{words} over {', '.join(keys)}, the best {label(headline)} first. What stands "
            f"above and below is about the best, {best.name}.",
            html=_table(rows, columns),
            groups=[Group(figures=drawn)] if drawn else [],
            notes=[*notes, *errors],
        )

    return write_report([best], path, sections=[section, comparison, learning])


def heat_map(rows: Sequence[Row], keys: Sequence[str], headline: str) -> Figure | None:
    """The headline over two swept keys; None if there are not exactly two.

    Where several runs share both values, the first row counts, which is the best.
    """
    if len(keys) != 2:
        return None
    down, across = ([*dict.fromkeys(_setting(row.get(key)) for row in rows)] for key in keys)
    down, across = sorted(down, key=_order), sorted(across, key=_order)
    best: dict[tuple[object, object], object] = {}
    for row in rows:
        down_at, across_at = (_setting(row.get(key)) for key in keys)
        best.setdefault((down_at, across_at), row.get(headline))
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


def density_curve(
    rows: Sequence[Row], keys: Sequence[str], headline: str, methods: Sequence[str]
) -> Figure | None:
    """The headline over density, one line per method; None if the runs do not differ in density.

    Runs that differ in their seed alone are one point. Runs without a method are the dense network,
    the first of them, which is the best, if there are several. Those with a method that kept all
    weights of what it left, such as a smaller network, have no place on the axis.
    """
    seeded: dict[tuple[str, tuple[str, ...]], list[Row]] = {}
    for row, method in zip(rows, methods, strict=False):
        if _finite(row.get(headline)) and _finite(row.get("density")):
            own = tuple(f"{key} {cell(row.get(key))}" for key in keys if key not in _SEEDS)
            seeded.setdefault((method, own), []).append(row)
    curves: dict[str, list[CurvePoint]] = {}
    for (method, own), group in seeded.items():
        values, densities = (
            [float(str(row[name])) for row in group] for name in (headline, "density")
        )
        if not method or min(densities) < 1.0:
            curves.setdefault(method, []).append(CurvePoint(values, densities, own))
    dense = curves.pop("", [None])[0]
    found = {point.density for points in curves.values() for point in points}
    if len(found) + (dense is not None) < 2 or not found:
        return None
    named = {label(method): points for method, points in curves.items()}
    title = f"{label(headline).capitalize()} against density"
    return density_figure(title, headline, named, dense=dense)


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _setting(value: object) -> object:
    # A whole section is a list or a table, which no dict takes as a key.
    return str(value) if isinstance(value, list | dict) else value


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
