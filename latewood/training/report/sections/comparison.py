"""Readings and sizes before and after: one run by stage, or several runs side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from markupsafe import Markup

from latewood.training.report.runs import Run
from latewood.training.report.section import Section
from latewood.training.report.words import (
    MINUS,
    bytes_text,
    count_text,
    is_share,
    label,
    number,
    percent,
    reading,
)

__all__ = ["SIZES", "comparison"]

SIZES: dict[str, tuple[str, Callable[[float], str]]] = {
    "parameters": ("Parameters", count_text),
    "nonzero": ("Nonzero parameters", count_text),
    "density": ("Density of the weights", percent),
    "bits": ("Bits per weight", number),
    "macs": ("Multiply-accumulates", count_text),
    "file_bytes": ("File", bytes_text),
    "latency_ms": ("Latency", lambda value: f"{value:.3g} ms"),
}
"""Entries of a run's size that the report names; others follow under their own names."""


def comparison(runs: Sequence[Run]) -> Section | None:
    """The readings by stage of one run, or the outcomes of several against the first."""
    finished = [run for run in runs if run.readings or run.size]
    if not finished:
        return Section(
            title="Before and after",
            lead="No run has come to its end yet, so there are no final readings to compare.",
        )
    if len(runs) == 1:
        tables = [_stages(runs[0]), _sizes(runs[0])]
        body = Markup('<div class="tables">{}</div>').format(Markup("").join(tables))
        return Section(title="Before and after", lead=_stage_words(runs[0]), html=body)
    return Section(
        title="Side by side",
        lead=f"Changes are relative to {runs[0].name}; for shares they are in percentage points.",
        html=_side_by_side(runs),
    )


def _stage_words(run: Run) -> str:
    stages = list(run.readings)
    if len(stages) < 2:
        return ""
    words = {
        "trained": "after the last step",
        "finalized": "once the methods' outcome is baked into plain layers",
        "recalibrated": "once batch-norm statistics are recomputed for it",
    }
    parts = [f"{stage}: {words[stage]}" for stage in stages if stage in words]
    return f"{'; '.join(parts)}.".capitalize() if parts else ""


def _ordered_metrics(runs: Sequence[Run]) -> list[str]:
    names = dict.fromkeys(run.headline for run in runs if run.headline)
    for run in runs:
        for metrics in run.readings.values():
            names |= dict.fromkeys(metrics)
    known = {name for run in runs for metrics in run.readings.values() for name in metrics}
    return [name for name in names if name in known]


def _stages(run: Run) -> Markup:
    stages = run.readings
    if not stages:
        return Markup("")
    head = Markup("").join(Markup('<th scope="col">{}</th>').format(label(s)) for s in stages)
    rows = Markup("").join(
        Markup('<tr{}><th scope="row">{}</th>{}</tr>').format(
            Markup(' class="headline"' if name == run.headline else ""),
            label(name),
            Markup("").join(
                Markup("<td>{}</td>").format(
                    reading(name, metrics[name]) if name in metrics else "–"
                )
                for metrics in stages.values()
            ),
        )
        for name in _ordered_metrics([run])
    )
    return _table("Validation", Markup("<th></th>") + head, rows)


def _sizes(run: Run) -> Markup:
    if not run.size:
        return Markup("")
    rows = Markup("").join(
        Markup('<tr><th scope="row">{}</th><td>{}</td></tr>').format(title, text(run.size[name]))
        for name, (title, text) in _size_names([run]).items()
    )
    return _table("Final model", Markup("<th></th><th></th>"), rows)


def _size_names(runs: Sequence[Run]) -> dict[str, tuple[str, Callable[[float], str]]]:
    present = dict.fromkeys(name for run in runs for name in run.size)
    known = {name: SIZES[name] for name in SIZES if name in present}
    others = {n: (label(n).capitalize(), number) for n in present if n not in SIZES}
    return known | others


def _side_by_side(runs: Sequence[Run]) -> Markup:
    head = Markup("").join(
        Markup('<th scope="col"><span class="key" data-run="{}"></span>{}</th>').format(
            position, run.name
        )
        for position, run in enumerate(runs)
    )
    rows = []
    for name in _ordered_metrics(runs):
        for stage in dict.fromkeys(stage for run in runs for stage in run.readings):
            values = [run.readings.get(stage, {}).get(name) for run in runs]
            if any(value is not None for value in values):
                better = _direction(name, runs)
                texts = [None if v is None else reading(name, v) for v in values]
                headline = name in {run.headline for run in runs}
                title = f"{label(name)}, {label(stage)}"
                rows.append(_row(title, values, texts, better, is_share(name), headline))
    for name, (title, text) in _size_names(runs).items():
        values = [run.size.get(name) for run in runs]
        texts = [None if v is None else text(v) for v in values]
        rows.append(_row(title, values, texts, -1, False, False))
    return _table("", Markup("<th></th>") + head, Markup("").join(rows))


def _direction(name: str, runs: Sequence[Run]) -> int:
    for run in runs:
        if name == run.headline:
            return 1 if run.higher_is_better else -1
    return -1 if "loss" in name or "error" in name else 1 if "accuracy" in name else 0


def _row(
    title: str,
    values: Sequence[float | None],
    texts: Sequence[str | None],
    better: int,
    points: bool,
    headline: bool,
) -> Markup:
    cells = []
    for position, (value, text) in enumerate(zip(values, texts, strict=True)):
        change = Markup("")
        if position > 0 and value is not None and values[0] is not None:
            change = _change(values[0], value, better, points)
        cells.append(Markup("<td>{}{}</td>").format(text or "–", change))
    return Markup('<tr{}><th scope="row">{}</th>{}</tr>').format(
        Markup(' class="headline"' if headline else ""), title, Markup("").join(cells)
    )


def _change(before: float, after: float, better: int, points: bool) -> Markup:
    difference = after - before
    if not math.isfinite(difference) or (before == 0 and not points):
        return Markup("")
    if points:
        text = f"{100 * difference:+.1f} points"
    else:
        share = difference / abs(before)
        text = f"×{after / before:.2f}" if share > 1 else f"{100 * share:+.1f} %"
    flat = abs(difference) <= 5e-4 * max(abs(before), 1e-12)
    kind = "" if flat or not better else "better" if difference * better > 0 else "worse"
    shown = "same" if difference == 0 else text.replace("-", MINUS)
    return Markup('<small class="{}">{}</small>').format(kind, shown)


def _table(caption: str, head: Markup, rows: Markup) -> Markup:
    title = Markup("<caption>{}</caption>").format(caption) if caption else Markup("")
    return Markup(
        '<div class="scroll" tabindex="0"><table>{}<thead><tr>{}</tr></thead><tbody>{}</tbody>'
        "</table></div>"
    ).format(title, head, rows)
