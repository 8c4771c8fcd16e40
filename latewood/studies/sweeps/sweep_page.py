"""The page of a sweep: a table of its runs, quality over density, a heat map over two keys."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from latewood.report import Figure, Group, Run, Section, write_report
from latewood.report.density_curves import CurvePoint, density_figure
from latewood.report.formatting import label, plot_text
from latewood.report.sections.comparison_section import comparison
from latewood.report.sections.learning_section import learning
from latewood.terminal.tables import Row, cell
from latewood.training.run_folder import RunFolder

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

    def section(runs: Sequence[Run]) -> Section:
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
    """The headline over two swept keys; None if there are not exactly two beside seeds.

    Seeds are averaged. Where other runs share both values, the first row counts, which is the best.
    """
    axes = [key for key in keys if key not in _SEEDS]
    if len(axes) != 2:
        return None
    seeded = len(axes) < len(keys)
    down, across = ([*dict.fromkeys(_setting(row.get(key)) for row in rows)] for key in axes)
    down, across = sorted(down, key=_order), sorted(across, key=_order)
    cells: dict[tuple[object, object], list[Row]] = {}
    for row in rows:
        down_at, across_at = (_setting(row.get(key)) for key in axes)
        cells.setdefault((down_at, across_at), []).append(row)

    def shown(down_at: object, across_at: object) -> object:
        inside = cells.get((down_at, across_at), [{}])
        numbers = _numbers(inside, headline)
        return sum(numbers) / len(numbers) if seeded and numbers else inside[0].get(headline)

    values = [[shown(one, other) for other in across] for one in down]
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
        "xaxis": {"type": "category", "title": {"text": plot_text(axes[1])}},
        "yaxis": {"type": "category", "title": {"text": plot_text(axes[0])}},
    }
    return Figure(
        title=f"{label(headline).capitalize()} over {axes[0]} and {axes[1]}"
        + (", mean over seeds" if seeded else ""),
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
    the first of them, which is the best, if there are several. Networks that a method made smaller
    and left dense have no place on the axis.
    """
    curves: dict[str, list[CurvePoint]] = {}
    for (method, setting), group in _seeded(rows, keys, headline, methods).items():
        values, densities = _numbers(group, headline), _numbers(group, "density")
        curves.setdefault(method, []).append(CurvePoint(values, densities, setting))
    if len({point.density for points in curves.values() for point in points}) < 2:
        return None
    dense = curves.pop("", [None])[0]
    named = {label(method): points for method, points in curves.items()}
    title = f"{label(headline).capitalize()} against density"
    return density_figure(title, headline, named, dense=dense) if named else None


def _seeded(
    rows: Sequence[Row], keys: Sequence[str], headline: str, methods: Sequence[str]
) -> dict[tuple[str, tuple[str, ...]], list[Row]]:
    """The rows with a density to show, by method and by all settings but the seed."""
    largest = max(_numbers(rows, "parameters"), default=0.0)
    groups: dict[tuple[str, tuple[str, ...]], list[Row]] = {}
    for row, method in zip(rows, methods, strict=False):
        density = _numbers([row], "density")
        smaller = any(count < largest for count in _numbers([row], "parameters"))
        if density and _numbers([row], headline) and not (method and smaller and density == [1.0]):
            setting = tuple(f"{key} {_shown(row.get(key))}" for key in keys if key not in _SEEDS)
            groups.setdefault((method, setting), []).append(row)
    return groups


def _numbers(rows: Sequence[Row], name: str) -> list[float]:
    """The finite numbers of a column."""
    values = (row.get(name) for row in rows)
    return [float(v) for v in values if isinstance(v, int | float) and math.isfinite(v)]


def _setting(value: object) -> object:
    # A whole section is a list or a table, which no dict takes as a key.
    return _shown(value) if isinstance(value, list | dict) else value


def _shown(value: object) -> str:
    """A setting as people say it, whole sections too: their name first, then their arguments."""
    if isinstance(value, list):
        return ", ".join(_shown(item) for item in value) or "none"
    if isinstance(value, dict):
        rest = (f"{key} {_shown(item)}" for key, item in value.items() if key != "name")
        return " ".join([label(str(value.get("name", ""))), *rest]).strip()
    return cell(value)


def _order(value: object) -> tuple[bool, float, str]:
    numeric = isinstance(value, int | float)
    return (not numeric, float(value) if isinstance(value, int | float) else 0.0, str(value))


def _table(rows: Sequence[Row], columns: Sequence[str]) -> Markup:
    head = Markup("").join(Markup('<th scope="col">{}</th>').format(name) for name in columns)
    body = Markup("").join(
        Markup('<tr><th scope="row">{}</th>{}</tr>').format(
            _shown(row.get(columns[0])),
            Markup("").join(Markup("<td>{}</td>").format(_shown(row.get(c))) for c in columns[1:]),
        )
        for row in rows
    )
    return Markup(
        '<div class="scroll" tabindex="0"><table class="text"><thead><tr>{}</tr></thead>'
        "<tbody>{}</tbody></table></div>"
    ).format(head, body)
