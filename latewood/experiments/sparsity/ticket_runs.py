"""Searches for tickets as the experiments do them: one seed each, in a folder of its settings."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from latewood.experiments.registry import Results, Workspace
from latewood.studies.tickets import TicketTable, search_tickets
from latewood.training.recipe import Recipe

__all__ = ["at_density", "search"]


def search(
    workspace: Workspace,
    name: str,
    recipe: Recipe,
    seed: int,
    *,
    again: bool = False,
    **settings: Any,
) -> TicketTable:
    """The table of a search; one with the same settings that is there already is read.

    Args:
        workspace: where its folder goes, which has a digest of recipe and settings in its name.
        name: what the folder's name begins with.
        recipe: of one training.
        seed: the one seed.
        again: search even if such a table is there.
        settings: further arguments of ``search_tickets``.
    """
    decisive = {"recipe": recipe.model_dump(mode="json"), "settings": settings}
    text = json.dumps(decisive, sort_keys=True, allow_nan=False)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    folder = workspace.folder / f"{name}-{seed}-{digest}"
    if TicketTable.is_in(folder) and not again:
        return TicketTable.load(folder)
    return search_tickets(
        recipe, folder=folder, seeds=(seed,), overwrite=True, show_progress=False, **settings
    )


def at_density(results: Results, *names: str, density: str = "density") -> str:
    """Shares in percent, and the density at which they were measured."""
    shares = results.texts(*names, scale=100, unit="%")
    return f"{shares}, density {results.text(density, digits=4)}"
