"""Tables: what people see when output is piped, and what programs read back."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path

import pyarrow.parquet
import pytest

from latewood.errors import RequestError, WorkError
from latewood.terminal.tables import cell, print_table, write_table

ROWS = [{"run": "a", "accuracy": 0.987654, "nonzero": 12345}, {"run": "[b]", "accuracy": None}]


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_cells() -> None:
    assert [cell(v) for v in (None, 12345, 0.123456, True, "x")] == [
        "-",
        "12,345",
        "0.1235",
        "yes",
        "x",
    ]


def test_piped_table_aligns_numbers_to_the_right() -> None:
    out = io.StringIO()
    print_table(ROWS, title="Runs", to=out)
    assert out.getvalue().splitlines() == [
        "Runs",
        "run  accuracy  nonzero",
        "a      0.9877   12,345",
        "[b]         -        -",
    ]


def test_terminal_table_shows_brackets_as_text() -> None:
    out = _Terminal()
    print_table(ROWS, to=out)
    assert "[b]" in out.getvalue() and "12,345" in out.getvalue()


def test_empty_table() -> None:
    out = io.StringIO()
    print_table([], columns=["run"], to=out)
    assert out.getvalue() == "run\n"


def test_files_read_back(tmp_path: Path) -> None:
    with write_table(ROWS, tmp_path / "t.csv").open(newline="") as file:
        assert list(csv.DictReader(file))[1] == {"run": "[b]", "accuracy": "", "nonzero": ""}
    assert json.loads(write_table(ROWS, tmp_path / "t.json").read_text())[0] == ROWS[0]
    table = pyarrow.parquet.read_table(write_table(ROWS, tmp_path / "t.parquet"))
    assert table.column("accuracy").to_pylist() == [0.987654, None]


def test_json_stays_json_with_nan(tmp_path: Path) -> None:
    text = write_table([{"loss": math.nan}], tmp_path / "t.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == [{"loss": None}]


def test_unknown_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"\.csv, \.json, \.parquet"):
        write_table(ROWS, tmp_path / "t.xlsx")


def test_unwritable_place_is_named(tmp_path: Path) -> None:
    with pytest.raises(WorkError, match=r"t\.csv"):
        write_table(ROWS, tmp_path / "missing" / "t.csv")
