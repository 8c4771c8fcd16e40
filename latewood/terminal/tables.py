"""Tables for people (drawn on a terminal, plain when piped) and programs (CSV, JSON, Parquet)."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from latewood.errors import WorkError, invalid

__all__ = ["FORMATS", "Row", "cell", "print_table", "visible", "write_table"]

Row = Mapping[str, object]
"""Column -> value; None and a missing column are shown as a dash."""

FORMATS = (".csv", ".json", ".parquet")
"""Endings of files that ``write_table`` can write."""


def cell(value: object) -> str:
    """A value as a table shows it: counts with thousands separators, four significant digits."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) or (isinstance(value, float) and _is_whole(value)):
        return f"{int(value):,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return visible(str(value))


def visible(text: str) -> str:
    """Text from elsewhere without what a terminal would obey: control characters are spelled out.

    Args:
        text: a name in a file, for example.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def print_table(
    rows: Sequence[Row],
    *,
    title: str = "",
    columns: Sequence[str] = (),
    right: Collection[str] = (),
    to: TextIO | None = None,
) -> None:
    """Prints rows as a table; numbers are aligned to the right.

    Args:
        rows: the rows, in order.
        title: a line above the table.
        columns: which columns, in which order; those of the first row if empty.
        right: columns of text to align to the right as well.
        to: where; standard output if None.
    """
    to = to or sys.stdout
    columns = list(columns) or list(rows[0] if rows else [])
    to_right = [
        name in right or any(isinstance(row.get(name), int | float) for row in rows)
        for name in columns
    ]
    texts = [[cell(row.get(name)) for name in columns] for row in rows]
    if to.isatty():
        table = Table(title=escape(visible(title)) or None, title_justify="left")
        for name, numeric in zip(columns, to_right, strict=True):
            table.add_column(escape(name), justify="right" if numeric else "left")
        for text in texts:
            table.add_row(*map(escape, text))
        Console(file=to).print(table)
        return
    widths = [
        max(len(name), *(len(text[i]) for text in texts)) if texts else len(name)
        for i, name in enumerate(columns)
    ]
    if title:
        to.write(f"{visible(title)}\n")
    for text in [columns, *texts]:
        padded = [
            value.rjust(width) if numeric else value.ljust(width)
            for value, width, numeric in zip(text, widths, to_right, strict=True)
        ]
        to.write("  ".join(padded).rstrip() + "\n")


def write_table(rows: Sequence[Row], path: Path, *, columns: Sequence[str] = ()) -> Path:
    """Writes rows to a file whose ending says how: .csv, .json or .parquet.

    Raises:
        RequestError: another ending.
        WorkError: the file cannot be written.
    """
    columns = list(columns) or list(rows[0] if rows else [])
    filled = [{name: row.get(name) for name in columns} for row in rows]
    try:
        if path.suffix == ".csv":
            with path.open("w", newline="", encoding="utf-8", errors="replace") as file:
                writer = csv.DictWriter(file, columns, lineterminator="\n")
                writer.writeheader()
                writer.writerows(filled)
        elif path.suffix == ".json":
            text = json.dumps([{k: _finite(v) for k, v in row.items()} for row in filled], indent=1)
            path.write_text(text + "\n", encoding="utf-8", errors="replace")
        elif path.suffix == ".parquet":
            # Not above: this module is read by every command that prints.
            import pyarrow.parquet

            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(filled), path)
        else:
            raise invalid("path", str(path), f"a name that ends in one of {', '.join(FORMATS)}")
    except OSError as error:
        raise WorkError(f"{path}: cannot be written: {error.strerror or error}") from error
    return path


def _is_whole(value: float) -> bool:
    return math.isfinite(value) and value == int(value) and abs(value) < 1e15


def _finite(value: object) -> object:
    # JSON has no word for nan or inf.
    return None if isinstance(value, float) and not math.isfinite(value) else value
