"""The outcome of one or several runs in a headline, a sentence and a few figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from latewood.errors import listed
from latewood.report.formatting import (
    MINUS,
    SPACE,
    bytes_text,
    count_text,
    is_share,
    label,
    metric_text,
    number,
    percent,
)
from latewood.report.run_data import Run

__all__ = ["Headline", "Tile", "headline"]


@dataclass(frozen=True)
class Tile:
    """One large figure with what it is."""

    value: str
    title: str
    note: str = ""


@dataclass(frozen=True)
class Headline:
    """What a report opens with.

    Args:
        title: the outcome in words.
        lead: what was run, in a sentence.
        tiles: the figures that matter most.
    """

    title: str
    lead: str
    tiles: tuple[Tile, ...]


def headline(runs: Sequence[Run]) -> Headline:
    """Puts the outcome of the runs into words.

    Args:
        runs: one or several; the first is what the others are compared with.
    """
    if len(runs) == 1:
        return Headline(_outcome(runs[0]), _what(runs[0]), _tiles(runs[0]))
    finished = [run for run in runs if run.headline_value is not None]
    lead = f"{len(runs)} runs: {listed((run.name for run in runs), most=12)}."
    if not finished:
        return Headline(f"{len(runs)} runs, none of them finished", lead, ())
    sign = 1 if finished[0].higher_is_better else -1
    best = max(finished, key=lambda run: sign * (run.headline_value or 0.0))
    if len(finished) == 2 and finished[0] is runs[0]:
        base, other = finished
        outcome = _lower_first(_outcome(other, base))
        title = f"{other.name} has {outcome}{_against(base, other)}"
        return Headline(title, f"{lead} {_what(other)}", _tiles(other))
    outcome = _lower_first(_outcome(best, runs[0]))
    title = f"Best of {len(runs)} runs: {best.name} has {outcome}"
    return Headline(title, f"{lead} Of the best: {_lower_first(_what(best))}", _tiles(best))


def _outcome(run: Run, base: Run | None = None) -> str:
    """What a run reached, with how much of its own weights, or of those of another network."""
    value = run.headline_value
    if value is None:
        return f"{run.name}: no result yet, {run.scalars.last_step:,} steps done"
    name = label(run.headline)
    text = metric_text(run.headline, value)
    shown = f"{text} {name}" if is_share(run.headline) else f"{name} {text}"
    density = run.size.get("density")
    if base is not None and _is_smaller(run, base):
        part = run.size["nonzero"] / base.size["nonzero"]
        return _upper_first(f"{shown} with {percent(part)} of the parameters of {base.name}")
    if density is None:
        return _upper_first(shown)
    if density >= 0.9995:
        return _upper_first(f"{shown} with every weight in place")
    return _upper_first(f"{shown} with {percent(density)} of the weights")


def _is_smaller(run: Run, base: Run) -> bool:
    known = "nonzero" in run.size and base.size.get("nonzero", 0) > 0
    return known and run.size.get("parameters", 0) < base.size.get("parameters", 0)


def _against(base: Run, other: Run) -> str:
    if (
        base.headline_value is None
        or other.headline_value is None
        or base.headline != other.headline
    ):
        return ""
    difference = other.headline_value - base.headline_value
    in_percent = is_share(base.headline)
    text = f"{100 * difference:+.1f} points" if in_percent else f"{difference:+.3g}"
    return f", {text.replace('-', MINUS)} against {base.name}"


def _what(run: Run) -> str:
    recipe = run.recipe
    parts = [
        f"{_named(recipe[key])} {word}" if key == "task" else f"{word} {_named(recipe[key])}"
        for key, word in (("model", "model"), ("task", "task"), ("optimizer", "optimizer"))
        if _named(recipe.get(key))
    ]
    methods = [label(_named(m)) for m in recipe.get("methods", ()) if _named(m)]
    parts.append(f"with {' and '.join(methods)}" if methods else "without any method")
    length = [f"{recipe[key]:,} {key}" for key in ("epochs", "steps") if _counts(recipe.get(key))]
    seconds = run.summary.get("seconds")
    if isinstance(seconds, int | float):
        length.append(_duration(float(seconds)))
    return f"{_upper_first(', '.join([*parts, *length]))}."


def _counts(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _named(section: object) -> str:
    if isinstance(section, dict):
        return str(section.get("name", ""))
    return str(section) if section else ""


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f}{SPACE}s"
    minutes = seconds / 60
    return f"{minutes:.0f}{SPACE}min" if minutes < 120 else f"{minutes / 60:.1f}{SPACE}h"


def _tiles(run: Run) -> tuple[Tile, ...]:
    tiles = []
    if run.headline_value is not None:
        tiles.append(Tile(metric_text(run.headline, run.headline_value), label(run.headline)))
    size = run.size
    if "nonzero" in size and "parameters" in size:
        note = f"of {count_text(size['parameters'])}"
        tiles.append(Tile(count_text(size["nonzero"]), "nonzero parameters", note))
    if "bits" in size:
        tiles.append(Tile(number(size["bits"]), "bits per weight"))
    if "macs" in size:
        tiles.append(Tile(count_text(size["macs"]), "multiply-accumulates", "per sample"))
    if "file_bytes" in size:
        tiles.append(Tile(bytes_text(size["file_bytes"]), "file"))
    if "latency_ms" in size:
        tiles.append(Tile(f"{size['latency_ms']:.3g}{SPACE}ms", "latency", "one sample"))
    return tuple(tiles)


def _upper_first(text: str) -> str:
    return text[:1].upper() + text[1:]


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
