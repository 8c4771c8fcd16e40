"""The outcome of runs side by side: what a command prints when the training is over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from latewood.report.formatting import SPACE, label, reading
from latewood.report.sections.comparison_section import SIZES
from latewood.terminal.tables import Row
from latewood.training.run_folder import RunFolder

__all__ = ["STAGES", "final_reading", "outcome"]

STAGES = {
    "trained": "trained",
    "finalized": "finalized (hard)",
    "recalibrated": "finalized, batch norms recalibrated",
}
"""The stages at which a run is read, in their order, with what a table calls them."""


def outcome(runs: Mapping[str, RunFolder]) -> list[Row]:
    """One row for each reading and size, one column for each run.

    Args:
        runs: column -> the run.

    Returns:
        Rows with the column "" for the row's name; a run that lacks a figure lacks the column.
    """
    summaries = {name: run.summary for name, run in runs.items()}
    headline = next((str(s["headline"]) for s in summaries.values() if s), "")
    rows: list[Row] = []
    for stage, words in STAGES.items():
        readings = {name: s.get("readings", {}).get(stage, {}) for name, s in summaries.items()}
        values = {name: found[headline] for name, found in readings.items() if headline in found}
        if values:
            shown = {name: _plain(reading(headline, value)) for name, value in values.items()}
            rows.append({"": f"{label(headline)}, {words}"} | shown)
    for key, (words, text) in SIZES.items():
        sizes = {name: s.get("size", {}).get(key) for name, s in summaries.items()}
        shown = {name: _plain(text(v)) for name, v in sizes.items() if v is not None}
        if shown:
            rows.append({"": words} | shown)
    return rows


def final_reading(summary: Mapping[str, Any]) -> Mapping[str, Any]:
    """The metrics at the last stage that a run has; {} for one that has not finished."""
    readings: Mapping[str, Mapping[str, Any]] = summary.get("readings", {})
    stages: Sequence[str] = [stage for stage in STAGES if stage in readings]
    return readings[stages[-1]] if stages else {}


def _plain(text: str) -> str:
    # Not every terminal has the narrow space.
    return text.replace(SPACE, " ")
