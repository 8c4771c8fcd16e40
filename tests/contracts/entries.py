"""The registries' entries as cases of the contract tests, and the little each needs to be built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pytest

from latewood.training.components import REGISTRIES, resolve

Kind = Literal["method", "probe", "optimizer"]

ARGUMENTS: dict[Kind, dict[str, list[dict[str, Any]]]] = {
    "method": {
        "continuous_sparsification": [
            {"final_temperature": 50.0},
            {"rounds": 2, "harden_at": 0.5, "density": 0.5, "penalty_weight": 1e-3},
        ],
        "gradual_magnitude_pruning": [{"density": 0.3}],
        "drop_connect": [
            {"rate": 0.2},
            {
                "rate": {"start": 0.0, "end": 0.3, "until": 0.5},
                "emulate": "cells",
                "hrs_share": 0.9,
                "crossbar": {"weight_bits": 5, "bits_per_cell": 1},
                "resample": "epoch",
                "start_step": 2,
            },
        ],
        "growth": [
            {"schedule": {"name": "late", "end": 2.0, "at": 0.4}},
            {
                "schedule": {"name": "phased", "end": 1.6, "phases": 3, "epochs": [1, 1, 2]},
                "rescale": "vt_exact",
                "rates_every": 2,
            },
        ],
        "learned_precision": [
            {"target_bits": 2.5, "noise": {"initial_bits": 7.5}},
            {
                "penalty": 0.1,
                "per": "weight",
                "palette": [0, 1, 2, 4],
                "snap_at": 0.3,
                "nested": True,
                "exclude": [],
            },
            {
                "target_bits": 2.0,
                "activations": True,
                "patterns": 4,
                "palette": "three_levels",
                "noise": {"lr": 1.0, "initial_bits": 6.0, "scale": "fan_in"},
            },
        ],
        "structured_sparsification": [
            {"budget": {"parameters": 0.5}, "growth_logit": 0.0},
            {"budget": {"macs": 0.6}, "preset": "paper", "growth_logit": 0.0},
        ],
    },
    "probe": {
        "newborn": [{"every": 1}, {"every": 3}],
        "spectral": [{"every": 2}, {"every": 2, "worker": True, "pairs": "auto", "parts": 2}],
        "tangent_kernel": [{"every": 4, "examples": 4}],
    },
    "optimizer": {
        "sgd": [{"lr": 0.05, "momentum": 0.9}],
        "adam": [{"lr": 0.01}],
        "adamw": [{"lr": 0.01}],
        "avagrad": [{"lr": 0.5}],
        "avagradw": [{"lr": 0.5, "weight_decay": 1e-3}],
        "delayed_adam": [{"lr": 0.01}],
        "adabound": [{"lr": 0.01}],
        "amsbound": [{"lr": 0.01}],
        "csgd": [{"lr": 0.2, "momentum": 0.9}],
    },
}
"""By registry and name: the smallest valid arguments first, then those that reach other phases."""

BESIDE: dict[str, dict[str, Any]] = {
    "newborn": {"name": "growth", "schedule": {"name": "late", "end": 2.0, "at": 0.25}},
}
"""By the name of a probe, the method without which it has nothing to look at."""


@dataclass(frozen=True)
class Case:
    """A registered entry with one set of arguments."""

    kind: Kind
    name: str
    number: int = 0

    def __str__(self) -> str:
        return self.name if self.number == 0 else f"{self.name}-{self.number + 1}"

    @property
    def section(self) -> dict[str, Any]:
        """The entry as a section of a recipe."""
        registered = ARGUMENTS[self.kind].get(self.name)
        if registered is None:
            pytest.fail(
                f"{self.kind.upper()}S has {self.name!r} without an entry in "
                "tests/contracts/entries.py; add its smallest valid arguments"
            )
        return {"name": self.name, **registered[self.number]}

    @property
    def factory(self) -> Any:
        """The class that the entry names."""
        return resolve(self.kind, self.name)

    @property
    def is_ours(self) -> bool:
        """Whether the class is the package's own, not one of torch's."""
        return str(self.factory.__module__).startswith("latewood.")


def cases(*kinds: Kind) -> list[Case]:
    """Every registered entry with every set of arguments that the table has for it."""
    return [
        Case(kind, name, number)
        for kind in kinds
        for name in REGISTRIES[kind]
        for number in range(len(ARGUMENTS[kind].get(name, [{}])))
    ]
