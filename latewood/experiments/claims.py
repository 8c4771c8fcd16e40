"""The page of claims: every statement beside the paper's figure and ours, failures included."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from latewood.errors import WorkError
from latewood.experiments.registry import LABELS, Experiment
from latewood.experiments.runner import Record, Verdict, load_records, verdicts

__all__ = ["render_claims", "write_claims"]

_WORDS = ("holds", "does not hold", "undecided", "not measured")

_HEADER = """# Claims

Statements of the papers, re-measured. This page is generated from the results of real runs:
`latewood reproduce --no-run --out {folder} --claims {page}` writes it again
without running anything, and the command above each table measures its figures again. Intervals of
measured figures are 95 % intervals of the mean over seeds (Student's t). A claim is undecided where
the interval of a difference on which it depends contains its bound; the difference is taken seed by
seed where the runs share their seeds. Figures of one seed, and what is asked of every seed, are
judged as they are. What does not hold stays on the page.

How far a statement can be trusted stands before its source: {labels}.
"""


def render_claims(
    records: Sequence[Record],
    known: Mapping[str, Experiment],
    *,
    folder: Path = Path("docs/claims"),
    page: Path = Path("docs/claims.md"),
) -> str:
    """The page as Markdown.

    Args:
        records: runs, those of one experiment next to each other.
        known: experiments by name; records of others are listed as removed.
        folder: where the records are, as a reader of the page would type it.
        page: the page itself, likewise.
    """
    labels = "; ".join(f"[{label}] {meaning}" for label, meaning in LABELS.items())
    parts = [_HEADER.format(folder=folder.as_posix(), page=page.as_posix(), labels=labels)]
    grouped = {name: list(group) for name, group in groupby(records, lambda r: r.experiment)}
    parts.append(_summary(grouped, known))
    for name, group in grouped.items():
        if name in known:
            parts.append(_experiment(known[name], group))
    return "\n".join(parts)


def write_claims(page: Path, folder: Path, known: Mapping[str, Experiment]) -> Path:
    """Writes the page of claims from the records in a folder.

    Raises:
        WorkError: the page cannot be written, or a record cannot be read.
    """
    text = render_claims(load_records(folder), known, folder=folder, page=page)
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(text, encoding="utf-8")
    except OSError as error:
        raise WorkError(f"{page}: cannot be written: {error.strerror or error}") from error
    return page


def _summary(grouped: Mapping[str, list[Record]], known: Mapping[str, Experiment]) -> str:
    lines = [
        f"| experiment | scale | {' | '.join(_WORDS)} |",
        "|---|---|---|---|---|---|",
    ]
    for name, group in grouped.items():
        for record in group:
            if name not in known:
                lines.append(
                    f"| {_text(name)} (no longer there) | {record.scale} | - | - | - | - |"
                )
                continue
            words = [verdict.word for verdict in verdicts(known[name], record)]
            counts = " | ".join(str(words.count(word)) for word in _WORDS)
            lines.append(f"| [{_text(name)}](#{name}) | {record.scale} | {counts} |")
    missing = [name for name in known if name not in grouped]
    if missing:
        lines.append(f"\nWithout results so far: {', '.join(missing)}.")
    return "\n".join([*lines, ""])


def _experiment(experiment: Experiment, records: Iterable[Record]) -> str:
    lines = [f"## {experiment.name}", "", f"{experiment.title}. Source: {experiment.paper}.", ""]
    for record in records:
        machine = ", ".join(f"{key} {value}" for key, value in record.environment.items())
        lines += [
            f"### {experiment.name}, scale {record.scale}",
            "",
            f"`{record.command}`, {record.date}, {record.seconds:.0f} s; {_text(machine)}.",
            "",
        ]
        if record.results is None:
            lines += [f"**The run failed**: {_text(record.error)}", ""]
            continue
        if record.results.settings:
            settings = ", ".join(f"{k} = {v}" for k, v in record.results.settings.items())
            lines += [f"Settings: {_text(settings)}.", ""]
        lines += [
            "| claim | statement | source | the source's figure | measured | verdict |",
            "|---|---|---|---|---|---|",
            *(_row(verdict) for verdict in verdicts(experiment, record)),
            "",
        ]
    return "\n".join(lines)


def _row(verdict: Verdict) -> str:
    cells = (
        verdict.claim,
        verdict.statement,
        verdict.source,
        verdict.paper_figure,
        verdict.measured,
    )
    mark = f"**{verdict.text}**" if verdict.word == "does not hold" else verdict.text
    return f"| {' | '.join(map(_text, cells))} | {mark} |"


def _text(text: str) -> str:
    # A bar or a line break inside a cell would break the table.
    return " ".join(text.replace("|", "\\|").split())
