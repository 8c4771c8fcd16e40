"""Latewood grows, thins, quantises and hardens neural networks, and shows why it works.

Rooms load on first use, so that importing the package (and the command line's help) stays fast.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what type checkers and the reference of the API see of what loads on first use
    from latewood import (
        core,
        experiments,
        faults,
        growth,
        kernels,
        models,
        optim,
        precision,
        recipes,
        regimes,
        report,
        segmentation,
        slim,
        sparsity,
        spectra,
        studies,
        tasks,
        training,
    )

__version__ = "0.1.0"
__all__ = [
    "core",
    "experiments",
    "faults",
    "growth",
    "kernels",
    "models",
    "optim",
    "precision",
    "recipes",
    "regimes",
    "report",
    "segmentation",
    "slim",
    "sparsity",
    "spectra",
    "studies",
    "tasks",
    "training",
]


if not TYPE_CHECKING:  # a type checker would believe any name

    def __getattr__(name: str) -> ModuleType:
        if name in __all__:
            return importlib.import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
