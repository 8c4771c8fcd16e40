"""The page of an inspected checkpoint: ranks, tails and norms of its matrices over depth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from latewood.report import Figure, Group, Section
from latewood.report.figures import row_axis
from latewood.report.formatting import number
from latewood.report.headline import Headline, Tile
from latewood.report.report import write_page
from latewood.spectra.matrices.state_matrices import LeftOut
from latewood.studies.inspection import Inspection, summary_row
from latewood.terminal.tables import Row

__all__ = ["write_inspection_page"]

_LEAD: Final = (
    "One row for each matrix, from input to output. The effective rank says how many directions a "
    "matrix uses, as a fraction of those it has; a random matrix of the same shape has the rank of "
    "the grey mark. alpha is the exponent of a power law in the tail of the spectrum, hollow where "
    "the law describes the tail badly (a distance above 0.1)."
)


def write_inspection_page(title: str, inspection: Inspection, path: Path) -> Path:
    """Writes a self-contained page with the figures of one checkpoint.

    Args:
        title: what was inspected.
        inspection: of it.
        path: the HTML file.

    Returns:
        ``path``.

    Raises:
        WorkError: the file cannot be written.
    """
    rows = inspection.rows
    figures = [
        _figure("Effective rank", rows, "effective rank", beside="of random", bounds=(0, 1.02)),
        _figure("Exponent of the tail", rows, "alpha", hollow="fit distance"),
        _figure("Largest singular value", rows, "largest", log=True),
        _figure("Stable rank", rows, "stable rank", bounds=(0, None)),
    ]
    section = Section(
        title="Matrices over depth",
        lead=_LEAD,
        groups=[Group(figures=[figure for figure in figures if figure is not None])],
        notes=[_note(left) for left in inspection.left_out],
    )
    summary = summary_row(rows)
    tiles = [
        Tile(str(len(rows)), "matrices"),
        *(
            Tile(number(value), f"mean {name}")
            for name in ("effective rank", "stable rank", "alpha")
            if isinstance(value := summary[name], float)
        ),
    ]
    return write_page(Headline(f"Spectra of {title}", "", tuple(tiles)), [section], path)


def _note(left: LeftOut) -> str:
    shape = "x".join(map(str, left.shape))
    return f"{left.name} ({shape}, {str(left.dtype).removeprefix('torch.')}): {left.why}."


def _figure(
    title: str,
    rows: Sequence[Row],
    column: str,
    *,
    beside: str = "",
    hollow: str = "",
    log: bool = False,
    bounds: tuple[float, float | None] | None = None,
) -> Figure | None:
    """Marks of one quantity, a row each; None where no matrix has it."""
    values = [_value(row[column], log) for row in rows]
    if not any(value is not None for value in values):
        return None
    badly = [hollow and (_value(row[hollow], False) or 0.0) > 0.1 for row in rows]
    marker = {
        "color": "run 0",
        "size": 8,
        "symbol": ["circle-open" if open_ else "circle" for open_ in badly],
    }
    data = [_marks(column, values, marker)]
    if beside:
        grey = {
            "color": "muted",
            "size": 9,
            "symbol": "line-ns",
            "line": {"width": 2, "color": "muted"},
        }
        data.append(_marks("random", [_value(row[beside], log) for row in rows], grey))
    axis: dict[str, Any] = {"title": {"text": column}, "type": "log" if log else "linear"}
    if bounds is not None:
        axis |= {"rangemode": "tozero"} if bounds[1] is None else {"range": list(bounds)}
    return Figure(
        title=title,
        data=data,
        layout={
            "showlegend": bool(beside),
            "xaxis": axis,
            "yaxis": row_axis([str(row["name"]) for row in rows]),
        },
        height=110 + max(120, 22 * len(rows)),
        size="full",
        description=f"{title} of {len(rows)} matrices.",
    )


def _marks(name: str, values: Sequence[float | None], marker: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": list(values),
        "y": list(range(len(values))),
        "marker": marker,
        "hovertemplate": "%{x:.4~g}",
    }


def _value(value: object, log: bool) -> float | None:
    if not isinstance(value, int | float) or not math.isfinite(value) or (log and value <= 0):
        return None
    return float(value)
