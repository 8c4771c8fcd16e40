"""How far the tangent kernel has moved, and whether towards the targets."""

from __future__ import annotations

from collections.abc import Sequence

from latewood.report.figures import Line, line_figure
from latewood.report.run_data import Run
from latewood.report.section import Figure, Group, Section

__all__ = ["tangent_kernel"]

_PICTURES = (
    ("kernel_cosine", "Change of direction, cosd", "0.01 and less: kernel; 0.1 and more: rich"),
    ("kernel_relative", "Size of the change, relK", "0.1 and less: kernel; 1 and more: rich"),
    ("kernel_alignment", "Alignment with the targets", "what features are learned for"),
    ("kernel_rank", "Effective rank of the kernel", ""),
)


def tangent_kernel(runs: Sequence[Run]) -> Section | None:
    """Distances, alignment and rank of the kernel; None where no run was probed."""
    figures = [
        figure
        for metric, title, subtitle in _PICTURES
        if (figure := _figure(runs, metric, title, subtitle)) is not None
    ]
    if not figures:
        return None
    return Section(
        title="Tangent kernel",
        lead="How far the kernel of the network's gradients has moved since the start, on fixed "
        "training samples: little in the kernel regime, where features stay as they were.",
        groups=[Group(figures=figures)],
        notes=[],
    )


def _figure(runs: Sequence[Run], metric: str, title: str, subtitle: str) -> Figure | None:
    lines = []
    for place, run in enumerate(runs):
        series = run.series("probe", metric)
        if series is not None:
            lines.append(
                Line(name=run.name, x=series.steps, y=series.values, colour=f"run {place}")
            )
    if not lines:
        return None
    return line_figure(title, lines, points=runs[0].detail.points // 2, subtitle=subtitle)
