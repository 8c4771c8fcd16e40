"""The table of a ticket search: what every network that was trained came to, and its means."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import stdev
from typing import Any

from latewood.core.statistics import half_width, mean
from latewood.errors import RequestError, WorkError
from latewood.terminal.tables import Row, write_table
from latewood.training.run_folder import write_atomically

__all__ = ["BASELINES", "TicketTable"]

BASELINES: tuple[str, ...] = (
    "shuffled",
    "magnitude",
    "one_shot",
    "gradual",
    "iterative",
    "iterative_layerwise",
    "iterative_continued",
    "supermask",
)
"""What tickets can be compared with."""

_ROWS, _ABOUT = "tickets.json", "search.json"


@dataclass(frozen=True)
class TicketTable:
    """Density, quality and cost of every network that was trained.

    Args:
        rows: one per network and seed, with "method", "seed", "initial_logit", "round",
            "search_epochs" (epochs spent before the network's own training), "density", the
            headline measure, "search_seconds", and for soft masks "soft", "hard", "recalibrated"
            and "undecided".
        headline: the task's measure.
        folder: holds tickets.csv and tickets.json (these rows), summary.csv, search.json (the other
            arguments), report.html, and each ticket.
        higher_is_better: the direction of the headline.
        setting: what one training was, in words.
    """

    rows: list[dict[str, Any]]
    headline: str
    folder: Path
    higher_is_better: bool = True
    setting: str = ""

    def summary(self) -> list[Row]:
        """Means over the seeds with how far they can be trusted.

        Returns:
            One row per method, initial logit and round: "method", "initial_logit", "round",
            "search_epochs", "density", the headline measure, "deviation" (its standard deviation)
            and "interval" (half-width of its mean's 95 % interval, Student's t), both None for one
            seed, and "seeds".
        """
        means: list[Row] = []
        for (method, initial_logit, number), rows in self.groups().items():
            values = [row[self.headline] for row in rows]
            means.append(
                {
                    "method": method,
                    "initial_logit": initial_logit,
                    "round": number,
                    "search_epochs": rows[0]["search_epochs"],
                    "density": mean([row["density"] for row in rows]),
                    self.headline: mean(values),
                    "deviation": stdev(values) if len(values) > 1 else None,
                    "interval": half_width(values) if len(values) > 1 else None,
                    "seeds": len(rows),
                }
            )
        return means

    def groups(self) -> dict[tuple[str, Any, Any], list[dict[str, Any]]]:
        """The rows by method, initial logit and round, which differ in their seed alone."""
        groups: dict[tuple[str, Any, Any], list[dict[str, Any]]] = {}
        for row in self.rows:
            key = (row["method"], row["initial_logit"], row["round"])
            groups.setdefault(key, []).append(row)
        return groups

    def save(self) -> None:
        """Writes the rows, their summary and the rest of the table to its folder.

        Raises:
            WorkError: a file cannot be written.
        """
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        write_table(self.rows, self.folder / "tickets.csv", columns=columns)
        write_table(self.rows, self.folder / _ROWS, columns=columns)
        write_table(self.summary(), self.folder / "summary.csv")
        about = {
            "headline": self.headline,
            "higher_is_better": self.higher_is_better,
            "setting": self.setting,
        }
        write_atomically(self.folder / _ABOUT, json.dumps(about, indent=1) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> TicketTable:
        """Reads what ``save`` wrote.

        Raises:
            RequestError: the folder holds no ticket search.
            WorkError: a file is damaged.
        """
        folder = Path(folder)
        if not cls.is_in(folder):
            raise RequestError(f"folder: got '{folder}'; expected the folder of a ticket search")
        rows, about = (_read(folder / name) for name in (_ROWS, _ABOUT))
        needed = ("method", "seed", "initial_logit", "round", "search_epochs", "density")
        try:
            table = cls(
                rows=[dict(row) for row in rows],
                headline=str(about["headline"]),
                folder=folder,
                higher_is_better=bool(about["higher_is_better"]),
                setting=str(about["setting"]),
            )
            complete = all({*needed, table.headline} <= row.keys() for row in table.rows)
        except (TypeError, KeyError, ValueError) as error:
            raise WorkError(f"{folder}: not the tables that a ticket search wrote") from error
        if not complete or not rows:
            raise WorkError(f"{folder / _ROWS}: not the table that a ticket search wrote")
        return table

    @staticmethod
    def is_in(folder: str | Path) -> bool:
        """Whether a folder holds a ticket search."""
        return all((Path(folder) / name).is_file() for name in (_ROWS, _ABOUT))


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WorkError(f"{path}: cannot be read: {error}") from error
