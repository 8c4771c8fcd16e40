"""Searches of the experiments: what is there is read, and only if its settings are the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from latewood.experiments import Results, Workspace
from latewood.experiments.sparsity import ticket_runs as module
from latewood.experiments.sparsity.ticket_runs import at_density, search
from latewood.experiments.sparsity.ticket_search_digits import digits_recipe

pytestmark = pytest.mark.filterwarnings("ignore:soft and hard disagree", "ignore:.*undecided")

ONE_ROUND = {"initial_logits": (), "baselines": ("iterative",), "iterations": 1}


def test_a_search_with_other_settings_is_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, done = Workspace(tmp_path), []

    def searched(recipe: object, **more: object) -> object:
        done.append(more)
        return real(recipe, **more)

    real = module.search_tickets
    monkeypatch.setattr(module, "search_tickets", searched)
    recipe = digits_recipe(2)
    first = search(workspace, "soft", recipe, 3, **ONE_ROUND)
    assert (len(done), done[0]["seeds"]) == (1, (3,))
    again = search(workspace, "soft", recipe, 3, **ONE_ROUND)
    assert len(done) == 1
    assert (again.rows, again.folder) == (first.rows, first.folder)

    monkeypatch.setattr(module, "search_tickets", lambda recipe, folder, **more: folder)
    others = [
        search(workspace, "soft", recipe, 4, **ONE_ROUND),
        search(workspace, "soft", recipe, 3, initial_logits=(), baselines=()),
        search(workspace, "soft", digits_recipe(3), 3, **ONE_ROUND),
        search(workspace, "hard", recipe, 3, **ONE_ROUND),
    ]
    assert len({first.folder, *map(str, others)}) == 5
    forced = search(workspace, "soft", recipe, 3, again=True, **ONE_ROUND)
    assert forced == first.folder


def test_shares_are_said_with_their_density() -> None:
    results = Results({"ticket": [0.5], "density": [0.0123]})
    text = at_density(results, "ticket")
    assert text == "ticket 50.00 % (1 seed), density 0.0123 (1 seed)"
