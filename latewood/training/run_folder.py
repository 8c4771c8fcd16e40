"""The folder that a run leaves behind: recipe, metrics, checkpoints, spectra, model, summary."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import tomllib
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from latewood.errors import RequestError, WorkError, listed
from latewood.training.folder_lock import FolderLock, holds_nothing

__all__ = ["RunFolder", "write_atomically"]

_OWN = (
    "metrics.jsonl",
    "summary.json",
    "model.safetensors",
    "edits.safetensors",
    "edits.json",
    "report.html",
    "agreement.html",
    "checkpoints",
    "spectra",
    "failure",
    "trackers",
    "recipe.toml",
)
"""What a run writes. The recipe goes last: while it is there, the folder is known as a run's."""


class RunFolder:
    """One run's files, by name.

    A folder is a run folder if it holds a ``recipe.toml`` that a run wrote, which is one with a
    table of the environment. Nothing here ever deletes a file that no run made. Who writes to it
    holds its ``lock``.

    Args:
        path: the folder; it need not exist yet.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.recipe_path = self.path / "recipe.toml"
        self.metrics_path = self.path / "metrics.jsonl"
        self.summary_path = self.path / "summary.json"
        self.model_path = self.path / "model.safetensors"
        self.edits_path = self.path / "edits"
        self.faults_path = self.path / "faults.json"
        self.report_path = self.path / "report.html"
        self.checkpoints = self.path / "checkpoints"
        self.spectra_folder = self.path / "spectra"
        self.failure_folder = self.path / "failure"
        self.trackers_folder = self.path / "trackers"
        self.lock = FolderLock(self.path)

    def __repr__(self) -> str:
        """The folder's path."""
        return f"RunFolder({str(self.path)!r})"

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.path.resolve().name

    @property
    def exists(self) -> bool:
        """Whether a run was started here."""
        try:
            recipe = tomllib.loads(self.recipe_path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return False
        return isinstance(recipe.get("environment"), dict)

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self.summary_path.exists()

    @property
    def summary(self) -> dict[str, Any]:
        """What the run came to; {} while it has not.

        Raises:
            WorkError: the file is damaged.
        """
        if not self.summary_path.exists():
            return {}
        try:
            summary: dict[str, Any] = json.loads(self.summary_path.read_bytes())
            if not isinstance(summary, dict):
                raise TypeError(f"a {type(summary).__name__} where a table should be")
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise WorkError(f"{self.summary_path}: cannot be read ({error})") from error
        if "readings" in summary:  # what earlier versions called them
            summary["evaluations"] = summary.pop("readings")
        wrong = _wrong_part(summary)
        if wrong:
            raise WorkError(f"{self.summary_path}: cannot be read ({wrong})")
        return summary

    def require_free(self, *, overwrite: bool = False) -> None:
        """Checks that a run can start here.

        Args:
            overwrite: whether an earlier run may be replaced.

        Raises:
            RequestError: the folder holds a run, or anything else.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RequestError(f"folder: got '{self.path}', which is a file; expected a folder")
        if self.exists and not overwrite:
            raise RequestError(
                f"folder: got '{self.path}', which holds a run already; expected a new folder, or "
                "--resume to go on with that run, or --overwrite to replace it"
            )
        with _refusing(self.path):
            if self.path.is_dir() and not self.exists and not holds_nothing(self.path):
                raise RequestError(
                    f"folder: got '{self.path}', which is not empty and holds no run; expected a "
                    "new or an empty folder"
                )

    def create(self, recipe: str, *, overwrite: bool = False) -> None:
        """Starts a run here.

        Args:
            recipe: text of ``recipe.toml``, with a table of the environment.
            overwrite: remove what an earlier run left here; other files stay.

        Raises:
            RequestError: the folder holds a run or anything else, or cannot be written to.
        """
        self.require_free(overwrite=overwrite)
        with _refusing(self.path):
            if self.exists:
                self._clear()
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomically(self.recipe_path, recipe)
            self.checkpoints.mkdir(exist_ok=True)
            self.metrics_path.touch()

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Adds one row to the metrics; a number that is not finite is written as null.

        Args:
            row: "step", "epoch", "kind", and named scalars.

        Raises:
            WorkError: the file cannot be written, or another process has taken the folder over.
        """
        self.lock.check()
        plain = {key: _finite(value) for key, value in row.items()}
        try:
            with self.metrics_path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(plain, allow_nan=False) + "\n")
        except OSError as error:
            raise WorkError(f"{self.metrics_path}: cannot be written ({error.strerror})") from error

    def read_metrics(self, problems: list[str] | None = None) -> list[dict[str, Any]]:
        """All rows of the metrics; null reads as NaN, and a torn last line is left out.

        Args:
            problems: gets a sentence about the damaged lines, which are then left out; None
                refuses them.

        Raises:
            WorkError: a line before the last is damaged, or the file cannot be read.
        """
        rows, damaged = self._rows()
        if damaged and problems is None:
            raise WorkError(f"{self.metrics_path}: {_damage(damaged)}")
        if damaged and problems is not None:
            problems.append(f"The metrics are incomplete: {_damage(damaged)} and left out.")
        return [
            {key: math.nan if value is None else value for key, value in row.items()}
            for row, _ in rows
        ]

    def truncate_metrics(self, step: int) -> None:
        """Drops the rows after ``step`` and a torn last line, as a resumed run writes them anew.

        Damaged lines are dropped with a warning: no checkpoint depends on them.

        Args:
            step: number of updates that the resumed run starts from.

        Raises:
            WorkError: the file cannot be read or written.
        """
        rows, damaged = self._rows()
        if damaged:
            warnings.warn(f"{self.metrics_path}: {_damage(damaged)} and left out", stacklevel=2)
        write_atomically(
            self.metrics_path, "".join(line for row, line in rows if row["step"] <= step)
        )

    def remove_leftovers(self) -> None:
        """Removes the half-written files that a killed process leaves; no run may be under way."""
        for folder in (self.path, self.spectra_folder, self.checkpoints):
            for entry in folder.glob(".*.tmp"):
                if entry.is_dir():
                    shutil.rmtree(entry, ignore_errors=True)
                else:
                    entry.unlink(missing_ok=True)

    def sync_metrics(self) -> None:
        """Makes sure that the rows so far survive a power cut, before a checkpoint relies on it.

        Raises:
            WorkError: they cannot be written, or another process has taken the folder over.
        """
        self.lock.check()
        try:
            with self.metrics_path.open("a", encoding="utf-8") as file:
                os.fsync(file.fileno())
        except OSError as error:
            raise WorkError(f"{self.metrics_path}: cannot be written ({error.strerror})") from error

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes ``summary.json``, which marks the run as finished.

        Raises:
            WorkError: the file cannot be written, or another process has taken the folder over.
        """
        self.lock.check()
        write_atomically(self.summary_path, json.dumps(_clean(summary), indent=2) + "\n")

    def _rows(self) -> tuple[list[tuple[dict[str, Any], str]], dict[int, str]]:
        """Rows with their lines, and by number what is wrong with each damaged line."""
        rows: list[tuple[dict[str, Any], str]] = []
        damaged: dict[int, str] = {}
        if not self.metrics_path.exists():
            return rows, damaged
        try:
            text = self.metrics_path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise WorkError(f"{self.metrics_path}: cannot be read ({error.strerror})") from error
        lines = text.split("\n")
        # What follows the last end of a line is torn.
        for number, line in enumerate(lines[:-1], start=1):
            try:
                rows.append((_row(line), line + "\n"))
            except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
                damaged[number] = f"{type(error).__name__}: {error}"[:200]
        if not lines[-1]:  # a last line that only looks whole is torn as well
            damaged.pop(len(lines) - 1, None)
        return rows, damaged

    def _clear(self) -> None:
        for name in _OWN:
            entry = self.path / name
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file so that it is either the old one or the whole new one, also on disk.

    Raises:
        WorkError: the file cannot be written; the old one is left as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # A name that is no UTF-8, as that of a folder may be, is no reason to fail.
        with temporary.open("w", encoding="utf-8", errors="replace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise WorkError(f"{path}: cannot be written ({error.strerror})") from error


@contextlib.contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Before a run has started, a folder that cannot be written is a wrong request."""
    try:
        yield
    except (OSError, WorkError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise RequestError(
            f"folder: got '{path}', which cannot be written to ({reason}); expected one that can"
        ) from error


def _wrong_part(summary: Mapping[str, Any]) -> str:
    """What is not of the form that a run writes; "" if nothing is."""
    evaluations = summary.get("evaluations", {})
    if not isinstance(evaluations, dict):
        return "evaluations is no table"
    tables = {"size": summary.get("size", {}), **evaluations}
    for name, table in tables.items():
        if not isinstance(table, dict) or not all(map(_is_number, table.values())):
            return f"{name!r:.40} is no table of numbers"
    if not isinstance(summary.get("headline", ""), str):
        return "headline is no name"
    single = ("steps", "seconds")
    wrong = [name for name in single if not _is_number(summary.get(name))]
    return f"{wrong[0]} is no number" if wrong else ""


def _is_number(value: Any) -> bool:
    """Whether something is a number that can be computed with, or the null of one that is none."""
    if value is None or isinstance(value, float):
        return True
    return isinstance(value, int) and abs(value) < 2**1000


def _row(line: str) -> dict[str, Any]:
    """The row in a line of the metrics; raises whatever is wrong with it."""
    row = json.loads(line)
    if not isinstance(row, dict):
        raise TypeError(f"a {type(row).__name__} where a row should be")
    for name in ("step", "epoch"):
        value = row["step"] if name == "step" else row.get(name, 0)
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
            raise TypeError(f"its {name} is {value!r:.40}, which is no number")
    for value in row.values():
        if isinstance(value, int):
            float(value)  # raises if nothing can be drawn or computed with it
    return row


def _damage(damaged: Mapping[int, str]) -> str:
    lines = f"line {next(iter(damaged))} is" if len(damaged) == 1 else f"{_lines(damaged)} are"
    return f"{lines} damaged ({next(iter(damaged.values()))})"


def _lines(damaged: Mapping[int, str]) -> str:
    return f"{len(damaged)} lines ({listed(map(str, damaged))})"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _clean(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _clean(item) for key, item in value.items()}
    return [_clean(item) for item in value] if isinstance(value, list | tuple) else _finite(value)
