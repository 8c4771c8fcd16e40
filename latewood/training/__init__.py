"""One run: its recipe, the loop, checkpoints, the run folder, opening it, processes.

Names load on first use, so that a recipe is checked, and refused, before torch is imported.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what type checkers and the reference of the API see of what loads on first use
    from latewood.training.opened_run import OpenedRun, open_run
    from latewood.training.processes import Processes
    from latewood.training.recipe import Recipe, load_recipe, parse_recipe
    from latewood.training.run import RunResult, train
    from latewood.training.run_folder import RunFolder

_HOMES = {
    "OpenedRun": "opened_run",
    "Processes": "processes",
    "Recipe": "recipe",
    "RunFolder": "run_folder",
    "RunResult": "run",
    "load_recipe": "recipe",
    "open_run": "opened_run",
    "parse_recipe": "recipe",
    "train": "run",
}

__all__ = [
    "OpenedRun",
    "Processes",
    "Recipe",
    "RunFolder",
    "RunResult",
    "load_recipe",
    "open_run",
    "parse_recipe",
    "train",
]


if not TYPE_CHECKING:  # a type checker would believe any name

    def __getattr__(name: str) -> Any:
        if name in _HOMES:
            return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
