"""Runs side by side, their evaluations and sizes: what a command prints after the training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from latewood.report.formatting import SPACE, label, metric_text
from latewood.report.run_data import STAGES
from latewood.report.sections.comparison_section import SIZES
from latewood.terminal.tables import Row
from latewood.training.run_folder import RunFolder

__all__ = ["final_evaluation", "summary_rows"]


def summary_rows(runs: Mapping[str, RunFolder]) -> list[Row]:
    """One row for each evaluation and size, one column for each run.

    Args:
        runs: column -> the run.

    Returns:
        Rows with the column "" for the row's name; a run that lacks a figure lacks the column.
    """
    summaries = {name: run.summary for name, run in runs.items()}
    headline = next((str(s.get("headline", "")) for s in summaries.values() if s), "")
    rows: list[Row] = []
    for stage, stage_name in STAGES.items():
        evaluations = {
            name: s.get("evaluations", {}).get(stage, {}) for name, s in summaries.items()
        }
        values = {
            name: scores[headline] for name, scores in evaluations.items() if headline in scores
        }
        if values:
            shown = {name: _plain(metric_text(headline, value)) for name, value in values.items()}
            rows.append({"": f"{label(headline)}, {stage_name}"} | shown)
    for key, (size_name, text) in SIZES.items():
        sizes = {name: s.get("size", {}).get(key) for name, s in summaries.items()}
        shown = {name: _plain(text(v)) for name, v in sizes.items() if v is not None}
        if shown:
            rows.append({"": size_name} | shown)
    return rows


def final_evaluation(summary: Mapping[str, Any]) -> Mapping[str, Any]:
    """The metrics at the last stage that a run has; {} for one that has not finished."""
    evaluations: Mapping[str, Mapping[str, Any]] = summary.get("evaluations", {})
    stages: Sequence[str] = [stage for stage in STAGES if stage in evaluations]
    return evaluations[stages[-1]] if stages else {}


def _plain(text: str) -> str:
    # Not every terminal has the narrow space.
    return text.replace(SPACE, " ")
