"""Writes a report: one HTML file that needs nothing else, for one run or for several."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

import latewood
from latewood.errors import WorkError, invalid
from latewood.report.headline import Headline, headline
from latewood.report.many_runs import chosen, run_table
from latewood.report.run_data import Run, read_runs, with_metrics, with_spectra
from latewood.report.sampling import DETAILS
from latewood.report.section import Figure, Section, SectionBuilder
from latewood.report.sections import SECTIONS
from latewood.training.run_folder import RunFolder

__all__ = ["LIMIT", "render", "write_page", "write_report"]

LIMIT = 8_000_000
"""Bytes that a report stays under."""


def write_report(
    runs: Sequence[RunFolder],
    path: Path,
    *,
    sections: Sequence[SectionBuilder] = SECTIONS,
) -> Path:
    """Writes the report of one run, or a comparison of several with the first one.

    What a run lacks is said in its place. Long runs are drawn with fewer points, so that the file
    stays under ``LIMIT``; of more runs than ``MOST_DRAWN`` the first and the best are drawn, and
    all are listed.

    Args:
        runs: the run folders.
        path: the HTML file; an older one is replaced.
        sections: what the report contains, in order.

    Returns:
        ``path``.

    Raises:
        RequestError: no runs, a folder that holds no run, or more runs than fit into one page.
        WorkError: the file cannot be written.
    """
    everything = read_runs(runs)
    drawn = [(with_metrics(everything[i], runs[i]), runs[i]) for i in chosen(everything)]
    for detail in DETAILS:
        shown = [
            with_spectra(run, folder, detail) if i < detail.runs else replace(run, detail=detail)
            for i, (run, folder) in enumerate(drawn)
        ]
        page = render(shown, sections=sections, everything=everything).encode(errors="replace")
        if len(page) < LIMIT:
            _write(path, page)
            return path
    raise invalid("runs", f"{len(runs)} runs", f"fewer, since one page is kept under {LIMIT} bytes")


def render(
    runs: Sequence[Run],
    *,
    sections: Sequence[SectionBuilder] = SECTIONS,
    everything: Sequence[Run] = (),
) -> str:
    """The report as HTML.

    Args:
        runs: one or several runs, which are drawn.
        sections: what the report contains, in order.
        everything: these and the runs that are listed only, if there are such.
    """
    several = len(runs) > 1
    problems = [
        f"{run.name}: {problem}" if several else problem for run in runs for problem in run.problems
    ]
    shown = [section for build in sections if (section := build(runs)) is not None]
    if len(everything) > len(runs):
        return _html(headline(everything), [run_table(everything), *shown], problems)
    return _html(headline(runs), shown, problems)


def write_page(headline: Headline, sections: Sequence[Section], path: Path) -> Path:
    """Writes a page in the report's manner about something other than runs.

    Args:
        headline: what the page opens with.
        sections: what it contains, in order.
        path: the HTML file; an older one is replaced.

    Returns:
        ``path``.

    Raises:
        WorkError: the file cannot be written.
    """
    _write(path, _html(headline, sections, []).encode(errors="replace"))
    return path


def _html(headline: Headline, sections: Sequence[Section], problems: Sequence[str]) -> str:
    plotly = _without_end_tags(files("plotly").joinpath("package_data/plotly.min.js").read_text())
    script = _without_end_tags(_page("page.js"))
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["payload"] = _payload
    return environment.from_string(_page("page.html.jinja")).render(
        title=f"{headline.title} · Latewood",
        policy=_policy(plotly, script),
        style=Markup(_page("style.css")),
        plotly=Markup(plotly),
        script=Markup(script),
        headline=headline,
        problems=problems,
        sections=sections,
        version=latewood.__version__,
    )


def _page(name: str) -> str:
    return files("latewood.report").joinpath("template", name).read_text(encoding="utf-8")


def _without_end_tags(script: str) -> str:
    # Inside a string of JavaScript both forms are the same; HTML would end the script at the first.
    return script.replace("\r\n", "\n").replace("</script", "<\\/script")


def _policy(*scripts: str) -> str:
    """Lets the browser run these scripts and nothing else, and load nothing at all."""
    digests = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def _payload(figure: Figure) -> Markup:
    """A figure as JSON that no HTML parser reads as anything but text."""
    content = {"data": figure.data, "layout": figure.layout, "x": figure.shared_x}
    text = json.dumps(_plain(content), allow_nan=False, separators=(",", ":"), ensure_ascii=True)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(path: Path, page: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(page)
        temporary.replace(path)
    except OSError as error:
        raise WorkError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
