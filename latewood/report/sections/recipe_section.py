"""What was asked for and where it ran: recipes, their differences, environments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from latewood.report.formatting import DASH
from latewood.report.run_data import Run
from latewood.report.section import Section

__all__ = ["recipe"]


def recipe(runs: Sequence[Run]) -> Section:
    """The recipe of each run in full, folded, after what differs between them."""
    parts = [_differences(runs)] if len(runs) > 1 else []
    for run in runs:
        several = len(runs) > 1
        if run.recipe_text:
            parts.append(
                _folded(
                    f"Recipe of {run.name}" if several else "Recipe",
                    Markup("<pre>{}</pre>").format(run.recipe_text),
                )
            )
        if run.environment:
            parts.append(
                _folded(
                    f"Environment of {run.name}" if several else "Environment",
                    _pairs(_flat(run.environment)),
                )
            )
    missing = [run.name for run in runs if not run.recipe_text]
    notes = [f"There is no recipe in the folder of {', '.join(missing)}."] if missing else []
    return Section(title="Recipe and environment", html=Markup("").join(parts), notes=notes)


def _differences(runs: Sequence[Run]) -> Markup:
    flat = [_flat(run.recipe) for run in runs]
    keys = dict.fromkeys(key for one in flat for key in one)
    different = [key for key in keys if len({one.get(key) for one in flat}) > 1]
    if not different:
        return Markup("<p>The recipes are the same.</p>")
    head = Markup("").join(Markup('<th scope="col">{}</th>').format(run.name) for run in runs)
    rows = Markup("").join(
        Markup('<tr><th scope="row"><code>{}</code></th>{}</tr>').format(
            key,
            Markup("").join(
                Markup("<td><code>{}</code></td>").format(one.get(key, DASH)) for one in flat
            ),
        )
        for key in different
    )
    return Markup(
        '<div class="scroll" tabindex="0"><table class="text"><caption>What differs between the '
        "recipes</caption><thead><tr><th></th>{}</tr></thead><tbody>{}</tbody></table></div>"
    ).format(head, rows)


def _flat(value: Any, path: str = "") -> dict[str, str]:
    if isinstance(value, Mapping):
        pairs = [(f"{path}.{key}" if path else str(key), item) for key, item in value.items()]
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        pairs = [(f"{path}[{_item_name(i, item)}]", item) for i, item in enumerate(value)]
    else:
        return {} if value == [] else {path: str(value)}
    flat: dict[str, str] = {}
    for key, item in pairs:
        flat |= _flat(item, key)
    return flat


def _item_name(position: int, item: Any) -> str:
    # By name, so that one more method does not make all that follow it look different.
    return str(item.get("name", position)) if isinstance(item, Mapping) else str(position)


def _pairs(flat: Mapping[str, str]) -> Markup:
    items = Markup("").join(
        Markup("<dt>{}</dt><dd>{}</dd>").format(key, value) for key, value in flat.items()
    )
    return Markup("<dl>{}</dl>").format(items)


def _folded(title: str, content: Markup) -> Markup:
    return Markup("<details><summary>{}</summary>{}</details>").format(title, content)
