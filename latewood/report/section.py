"""What a report is made of: sections, and the figures in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from markupsafe import Markup

from latewood.report.run_data import Run

__all__ = ["Figure", "Group", "Section", "SectionBuilder"]

_NOTHING = Markup("")


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One Plotly figure with its caption.

    Colours are names that the page resolves for its light and its dark theme: "run 0", "ramp 0.25",
    "ink", "muted", "grid"; colour scales are "ramp" or "heat". Names given by the user must have
    passed ``plot_text``, since Plotly reads a little HTML in every text.

    Args:
        title: caption.
        data: Plotly traces; one without "x" uses ``shared_x``.
        layout: Plotly layout, added to the page's own.
        subtitle: smaller text beside the caption.
        description: what a screen reader says; the title if empty.
        shared_x: horizontal positions of the traces that have none.
        height: in CSS pixels.
        size: "full" for the page's width, "half" or "panel" for two or several in a row.
    """

    title: str
    data: Sequence[dict[str, Any]]
    layout: dict[str, Any] = field(default_factory=dict)
    subtitle: str = ""
    description: str = ""
    shared_x: Sequence[float] = ()
    height: int = 300
    size: Literal["full", "half", "panel"] = "half"


@dataclass(frozen=True, kw_only=True)
class Group:
    """Figures that belong together, under a heading that folds them away.

    Args:
        figures: the figures, in order.
        title: the heading; without one the figures just follow the section's text.
        opened: whether they are shown at first.
    """

    figures: Sequence[Figure]
    title: str = ""
    opened: bool = True


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a report.

    Args:
        title: heading.
        lead: a sentence or two of plain text that say what is to be seen, or what is missing.
        html: tables and the like, already escaped.
        groups: the figures.
        legend: an escaped legend that holds for all figures.
        log_axis: offer a switch to logarithmic vertical axes.
        notes: plain-text sentences that follow the figures.
    """

    title: str
    lead: str = ""
    html: Markup = _NOTHING
    groups: Sequence[Group] = ()
    legend: Markup = _NOTHING
    log_axis: bool = False
    notes: Sequence[str] = ()


SectionBuilder = Callable[[Sequence[Run]], Section | None]
"""Makes a section of one or several runs, or None if it has nothing to say about them."""
