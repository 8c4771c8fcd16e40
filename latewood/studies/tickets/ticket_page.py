"""The page of a ticket search: quality over density and over cost, for all ways to prune."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from latewood.core.statistics import mean
from latewood.report import Figure, Group, Section
from latewood.report.density_curves import (
    CurvePoint,
    curve_layout,
    curve_trace,
    density_figure,
    with_interval,
)
from latewood.report.formatting import (
    DASH,
    count_text,
    is_share,
    label,
    metric_text,
    number,
    percent,
)
from latewood.report.headline import Headline, Tile
from latewood.report.report import write_page
from latewood.studies.tickets.ticket_table import TicketTable

__all__ = ["write_tickets_page"]

WORDS: Mapping[str, str] = {
    "untrained": "untrained",
    "dense": "dense",
    "ticket": "ticket",
    "hard": "hard masks, no second training",
    "shuffled": "ticket's counts at random places",
    "magnitude": "magnitude, one round, rewound",
    "one_shot": "magnitude, one shot, fine-tuned",
    "gradual": "magnitude, gradual",
    "iterative": "magnitude, iterative, rewound",
    "iterative_layerwise": "magnitude, iterative by layer",
    "iterative_continued": "magnitude, iterative, continued",
    "supermask": "supermask",
}
"""What the page calls each method of a table."""


@dataclass(frozen=True)
class _Point(CurvePoint):
    """One network of the table.

    Args:
        epochs: spent before its own training.
        words: its settings.
    """

    epochs: float = 0.0
    words: str = ""


def write_tickets_page(table: TicketTable, path: Path) -> Path:
    """Writes a self-contained page: curves with 95 % intervals over the seeds, and the table.

    Args:
        table: of the search.
        path: the HTML file.

    Returns:
        ``path``.

    Raises:
        WorkError: the file cannot be written.
    """
    curves = _curves(table)
    name = label(table.headline)
    seeds = len({row["seed"] for row in table.rows})
    spread = (
        f"Points are means over {seeds} seeds with 95 % intervals; the pale ones are single seeds."
        if seeds > 1
        else "There was one seed, so that nothing is known about the spread."
    )
    curve_section = Section(
        title=f"{name.capitalize()} and density",
        lead=f"Density is the fraction of the weights that is kept. {spread}",
        groups=[Group(figures=_figures(table, curves))],
        notes=[
            "Search epochs are what was trained before the network's own training; hard masks, "
            "gradual pruning and supermasks need none of their own, theirs is the search itself.",
            *_soft_notes(table),
        ],
    )
    all_networks = Section(title="All networks", html=_html_table(table))
    return write_page(_headline(table), [curve_section, all_networks], path)


def _curves(table: TicketTable) -> dict[str, list[_Point]]:
    curves: dict[str, list[_Point]] = {}
    for (method, logit, number_of_round), rows in table.groups().items():
        known = [row for row in rows if _finite(row[table.headline])]
        if not known:
            continue
        settings = [] if logit is None else [f"initial logit {logit:g}"]
        settings += [] if number_of_round is None else [f"round {number_of_round}"]
        epochs, words = float(known[0]["search_epochs"]), ", ".join(settings)
        point = _Point(
            values=[float(row[table.headline]) for row in known],
            densities=[float(row["density"]) for row in known],
            lines=(f"{number(epochs)} search epochs", words),
            epochs=epochs,
            words=words,
        )
        curves.setdefault(method, []).append(point)
    return curves


def _figures(table: TicketTable, curves: Mapping[str, Sequence[_Point]]) -> list[Figure]:
    name = label(table.headline).capitalize()
    whole = _over_density(table, curves, f"{name} against density")
    figures = [whole]
    if "dense" in curves and (near := _near_dense(table, curves)) is not None:
        closer = _over_density(table, curves, f"{name} against density, close to the dense network")
        closer.layout["yaxis"] |= {"range": near}
        figures.append(closer)
    return [*figures, _over_cost(table, curves)]


def _near_dense(
    table: TicketTable, curves: Mapping[str, Sequence[_Point]]
) -> tuple[float, float] | None:
    """The band of the headline that holds all tickets; None if it holds nearly everything."""
    nearest = [mean(point.values) for key in ("ticket", "dense") for point in curves.get(key, ())]
    everything = [mean(point.values) for points in _sparse(curves).values() for point in points]
    if not everything:
        return None
    low, high = min(nearest), max(nearest)
    margin = 0.5 * (high - low) + 1e-3 * abs(high)
    low, high = low - margin, high + margin
    if max(everything) - min(everything) < 3 * (high - low):
        return None
    return low, high


def _sparse(curves: Mapping[str, Sequence[_Point]]) -> dict[str, Sequence[_Point]]:
    """The curves of networks with some weights removed, in the order of ``WORDS``."""
    known = {name: curves[name] for name in WORDS if name in curves}
    known |= {name: points for name, points in curves.items() if name not in WORDS}
    return {name: points for name, points in known.items() if name not in ("untrained", "dense")}


def _over_density(table: TicketTable, curves: Mapping[str, Sequence[_Point]], title: str) -> Figure:
    named = {WORDS.get(name, label(name)): points for name, points in _sparse(curves).items()}
    dense = curves["dense"][0] if "dense" in curves else None
    return density_figure(title, table.headline, named, dense=dense)


def _over_cost(table: TicketTable, curves: Mapping[str, Sequence[_Point]]) -> Figure:
    data = []
    for place, (method, points) in enumerate(_sparse(curves).items()):
        ordered = sorted(points, key=lambda point: point.epochs)
        across = [point.epochs for point in ordered]
        joined = method.startswith("iterative")
        name = WORDS.get(method, label(method))
        data.append(curve_trace(table.headline, name, ordered, place, across, joined=joined))
    title = f"{label(table.headline).capitalize()} against the cost of the search"
    return Figure(
        title=title,
        subtitle="networks of different densities; see under the pointer",
        data=data,
        layout=curve_layout(table.headline) | {"xaxis": {"title": {"text": "search epochs"}}},
        height=380,
        size="full",
        description=f"{title}: {', '.join(_sparse(curves))}.",
    )


def _soft_notes(table: TicketTable) -> list[str]:
    """Where soft and hard networks differ, and how much was undecided, over the worst seed."""
    soft = [row for row in table.rows if row["method"] == "hard" and _finite(row.get("undecided"))]
    if not soft:
        return []
    worst = max(soft, key=lambda row: row["undecided"])
    shown = ", ".join(
        f"{name} {metric_text(table.headline, worst[name])}"
        for name in ("soft", "hard", "recalibrated")
        if _finite(worst.get(name))
    )
    return [
        f"Of the soft masks the least decided ended with {percent(worst['undecided'])} undecided "
        f"(seed {worst['seed']}, initial logit {worst['initial_logit']:g}: {shown})."
    ]


def _html_table(table: TicketTable) -> Markup:
    names = ("initial logit", "round", "search epochs", "density", label(table.headline), "seeds")
    head = Markup("<th></th>") + Markup("").join(
        Markup('<th scope="col">{}</th>').format(name) for name in names
    )
    rows = []
    for (method, logit, number_of_round), group in table.groups().items():
        values = [float(row[table.headline]) for row in group if _finite(row[table.headline])]
        cells = (
            DASH if logit is None else number(logit),
            DASH if number_of_round is None else number(number_of_round),
            count_text(group[0]["search_epochs"]),
            percent(mean([row["density"] for row in group])),
            with_interval(table.headline, values) if values else DASH,
            len(group),
        )
        line = Markup("").join(Markup("<td>{}</td>").format(cell) for cell in cells)
        word = WORDS.get(method, label(method))
        rows.append(Markup('<tr><th scope="row">{}</th>{}</tr>').format(word, line))
    return Markup(
        '<div class="scroll" tabindex="0"><table><thead><tr>{}</tr></thead><tbody>{}</tbody>'
        "</table></div>"
    ).format(head, Markup("").join(rows))


def _headline(table: TicketTable) -> Headline:
    curves = _curves(table)
    lead = f"{table.setting}." if table.setting else ""
    sign = 1 if table.higher_is_better else -1
    tickets = curves.get("ticket", [])
    if not tickets:
        return Headline(f"{len(table.groups())} networks compared", _upper_first(lead), ())
    best = max(tickets, key=lambda point: sign * mean(point.values))
    value = metric_text(table.headline, mean(best.values))
    headline = f"A ticket with {percent(best.density)} of the weights has "
    name = label(table.headline)
    headline += f"{value} {name}" if is_share(table.headline) else f"{name} {value}"
    tiles = [
        Tile(value, name, best.words),
        Tile(percent(best.density), "density"),
        Tile(count_text(best.epochs), "search epochs"),
        Tile(count_text(len(best.values)), "seeds" if len(best.values) > 1 else "seed"),
    ]
    if "dense" in curves:
        dense = metric_text(table.headline, mean(curves["dense"][0].values))
        headline += f", the dense network {dense}"
    return Headline(headline, _upper_first(lead), tuple(tiles))


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _upper_first(text: str) -> str:
    return text[:1].upper() + text[1:]
