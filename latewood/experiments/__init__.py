"""Every claim of the papers as a runnable check: a folder per room, files found by the registry.

A file registers its experiments when it is imported::

    register(Experiment("name", "Title", "Paper", run, claims=(Claim(...),)))

``run(scale, workspace)`` returns ``Results``; ``replicate`` runs a function once per seed.
"""

from __future__ import annotations

from latewood.experiments.registry import (
    SCALES,
    Claim,
    Experiment,
    Results,
    Scale,
    Workspace,
    experiments,
    register,
    replicate,
)

__all__ = [
    "SCALES",
    "Workspace",
    "Claim",
    "Experiment",
    "Results",
    "Scale",
    "experiments",
    "register",
    "replicate",
]
