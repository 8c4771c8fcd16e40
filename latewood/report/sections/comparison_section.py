"""Readings and sizes before and after: one run by stage, or several runs side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from markupsafe import Markup

from latewood.report.formatting import (
    DASH,
    MINUS,
    SPACE,
    TIMES,
    bytes_text,
    count_text,
    is_share,
    label,
    metric_text,
    number,
    percent,
    plot_text,
)
from latewood.report.run_data import Run
from latewood.report.section import Figure, Group, Section

__all__ = ["SIZES", "comparison"]

SIZES: dict[str, tuple[str, Callable[[float], str]]] = {
    "parameters": ("Parameters", count_text),
    "nonzero": ("Nonzero parameters", count_text),
    "density": ("Density of the weights", percent),
    "bits": ("Bits per weight", number),
    "macs": ("Multiply-accumulates", count_text),
    "training_share": ("Training cost, of steps at full size", percent),
    "file_bytes": ("File", bytes_text),
    "latency_ms": ("Latency", lambda value: f"{value:.3g}{SPACE}ms"),
}
"""Entries of a run's size that the report names; others follow under their own names."""


def comparison(runs: Sequence[Run]) -> Section | None:
    """The evaluations by stage of one run, or the outcomes of several against the first."""
    finished = [run for run in runs if run.evaluations or run.size]
    if not finished:
        return Section(
            title="Before and after",
            lead="No run has come to its end yet, so there are no final evaluations to compare.",
        )
    if len(runs) == 1:
        tables = [_stages(runs[0]), _sizes(runs[0])]
        body = Markup('<div class="tables">{}</div>').format(Markup("").join(tables))
        return Section(title="Before and after", lead=_stage_words(runs[0]), html=body)
    return Section(
        title="Side by side",
        lead=f"Final evaluations and sizes; the changes are against {runs[0].name}.",
        html=_side_by_side(runs),
        groups=[Group(figures=[trade])] if (trade := _trade_off(runs)) is not None else [],
    )


def _stage_words(run: Run) -> str:
    stages = list(run.evaluations)
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
        for metrics in run.evaluations.values():
            names |= dict.fromkeys(metrics)
    known = {name for run in runs for metrics in run.evaluations.values() for name in metrics}
    return [name for name in names if name in known]


def _stages(run: Run) -> Markup:
    stages = run.evaluations
    if not stages:
        return Markup("")
    head = Markup("").join(Markup('<th scope="col">{}</th>').format(label(s)) for s in stages)
    rows = Markup("").join(
        Markup('<tr{}><th scope="row">{}</th>{}</tr>').format(
            Markup(' class="headline"' if name == run.headline else ""),
            label(name),
            Markup("").join(
                Markup("<td>{}</td>").format(
                    metric_text(name, metrics[name]) if name in metrics else DASH
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
    headlines = {run.headline for run in runs}
    for name in _ordered_metrics(runs):
        rows.append(_metric_row(name, label(name), [_last(run, name) for run in runs], runs))
        if name in headlines:
            stages = dict.fromkeys(stage for run in runs for stage in run.evaluations)
            for stage in stages if len(stages) > 1 else ():
                values = [run.evaluations.get(stage, {}).get(name) for run in runs]
                rows.append(_metric_row(name, f"{label(name)}, {label(stage)}", values, runs))
    for name, (title, text) in _size_names(runs).items():
        values = [run.size.get(name) for run in runs]
        texts = [None if v is None else text(v) for v in values]
        rows.append(_row(title, values, texts, better=-1, points=name == "density"))
    return _table("", Markup("<th></th>") + head, Markup("").join(rows))


def _last(run: Run, name: str) -> float | None:
    values = [metrics[name] for metrics in run.evaluations.values() if name in metrics]
    return values[-1] if values else None


def _metric_row(
    name: str, title: str, values: Sequence[float | None], runs: Sequence[Run]
) -> Markup:
    return _row(
        title,
        values,
        [None if value is None else metric_text(name, value) for value in values],
        better=_direction(name, runs),
        points=is_share(name),
        headline=title == label(name) and any(name == run.headline for run in runs),
    )


def _trade_off(runs: Sequence[Run]) -> Figure | None:
    """The headline against the number of parameters left, if that differs between the runs."""
    points = [
        (position, run, run.headline_value, run.size["nonzero"])
        for position, run in enumerate(runs)
        if run.headline_value is not None and run.size.get("nonzero", 0) > 0
    ]
    if len({size for *_, size in points}) < 2:
        return None
    headline = points[0][1].headline
    percentages = is_share(headline)
    return Figure(
        title=f"{label(headline).capitalize()} against size",
        data=[
            {
                "type": "scatter",
                "mode": "markers+text",
                "x": [size],
                "y": [value],
                "name": plot_text(run.name),
                "text": [plot_text(run.name)],
                "textposition": "top center",
                "cliponaxis": False,
                "marker": {"size": 12, "color": f"run {position}"},
                "hovertemplate": "%{x:,} parameters<br>" + plot_text(metric_text(headline, value)),
            }
            for position, run, value, size in points
            if run.headline == headline
        ],
        layout={
            "showlegend": False,
            "hovermode": "closest",
            "xaxis": {
                "type": "log",
                "dtick": "D2",
                "tickformat": "~s",
                "title": {"text": "nonzero parameters"},
            },
            "yaxis": {"tickformat": ".1%" if percentages else "", "nticks": 5},
            "margin": {"t": 28, "r": 40},
        },
    )


def _direction(name: str, runs: Sequence[Run]) -> int:
    for run in runs:
        if name == run.headline:
            return 1 if run.higher_is_better else -1
    return -1 if "loss" in name or "error" in name else 1 if "accuracy" in name else 0


def _row(
    title: str,
    values: Sequence[float | None],
    texts: Sequence[str | None],
    *,
    better: int,
    points: bool,
    headline: bool = False,
) -> Markup:
    cells = []
    for position, (value, text) in enumerate(zip(values, texts, strict=True)):
        change = Markup("")
        if position > 0 and value is not None and values[0] is not None:
            change = _change(values[0], value, better, points)
        cells.append(Markup("<td>{}{}</td>").format(text or DASH, change))
    return Markup('<tr{}><th scope="row">{}</th>{}</tr>').format(
        Markup(' class="headline"' if headline else ""), title, Markup("").join(cells)
    )


def _change(before: float, after: float, better: int, points: bool) -> Markup:
    difference = after - before
    if not math.isfinite(difference) or difference == 0 or (before == 0 and not points):
        return Markup("")
    if points:
        text = f"{100 * difference:+.1f} points"
    elif difference > abs(before):
        text = f"{TIMES}{after / before:.3g}"
    else:
        text = f"{100 * difference / abs(before):+.1f}{SPACE}%"
    kind = "" if better == 0 else "better" if difference * better > 0 else "worse"
    return Markup('<small class="{}">{}</small>').format(kind, text.replace("-", MINUS))


def _table(caption: str, head: Markup, rows: Markup) -> Markup:
    title = Markup("<caption>{}</caption>").format(caption) if caption else Markup("")
    return Markup(
        '<div class="scroll" tabindex="0"><table>{}<thead><tr>{}</tr></thead><tbody>{}</tbody>'
        "</table></div>"
    ).format(title, head, rows)
