"""Runs of a recurrent network and of a Transformer, with their spectra and alignments by step."""

from __future__ import annotations

import argparse
import inspect
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from latewood.errors import WorkError
from latewood.experiments.registry import Scale, Workspace
from latewood.spectra import (
    PairAlignment,
    effective_rank,
    read_alignments,
    read_snapshot,
    snapshot_paths,
    truncation_scores,
)
from latewood.tasks import Task
from latewood.tasks.shakespeare import shakespeare
from latewood.tasks.spoken_digits import spoken_digits
from latewood.training.recipe import parse_recipe
from latewood.training.run import RunResult, train

__all__ = [
    "KINDS",
    "MIDDLE",
    "SequenceRun",
    "SequenceSetting",
    "kind_of",
    "sequence_setting",
    "train_sequence_model",
]

RecipeSection = dict[str, Any]

SCORED = 512
"""Training samples on which truncated networks are scored."""

KINDS: dict[str, dict[str, str]] = {
    "LSTM": {
        "input to input": "weight_ih->weight_ih",
        "state to input": "weight_hh->weight_ih",
        "input to state": "weight_ih->weight_hh",
    },
    "Transformer": {
        "query to key": "in_proj.weight[query->key]",
        "value to output": "in_proj.weight[value]->out_proj.weight",
        "output to first": "out_proj.weight->linear1.weight",
        "first to second": "linear1.weight->linear2.weight",
        "second to attention": "linear2.weight->in_proj.weight",
    },
}
"""Kinds of pairs by network: a name for people, and what their names come down to."""

_TRANSFORMER: RecipeSection = {
    "name": "transformer",
    "width": 64,
    "hidden": 64,
    "layers": 4,
    "heads": 4,
    "activation": "relu",
    "positions": "sinusoidal",
    "scale_embedding": True,
    "init": "uniform",
}
# The paper's networks and optimizers but for sizes and rates.
_RECIPES: dict[str, RecipeSection] = {
    "LSTM": {
        "model": {"name": "lstm_classifier", "hidden": 48, "layers": 4, "bidirectional": True},
        "optimizer": {"name": "adamw", "lr": 3e-3},
        "schedule": {"name": "cosine"},
    },
    "Transformer": {
        "model": _TRANSFORMER,
        "optimizer": {"name": "adamw", "lr": 3e-3, "betas": [0.9, 0.95]},
        "schedule": {"name": "cosine", "end": 0.1, "warmup": 0.09},
    },
}
_SMALL: dict[str, RecipeSection] = {
    "LSTM": {"name": "lstm_language_model", "hidden": 32, "layers": 2},
    "Transformer": _TRANSFORMER | {"width": 32, "hidden": 32, "layers": 2},
}

MIDDLE = {"LSTM": "input to input", "Transformer": "first to second"}
"""The kind whose largest alignment figure 7 shows."""


@dataclass(frozen=True)
class SequenceSetting:
    """What all runs of one network have in common.

    Args:
        recipe: of a run, all but its decay and its seed.
        task: the data of that recipe.
        measure_every: steps between two measurements.
        early: the last step that counts as early.
    """

    recipe: RecipeSection
    task: Task
    measure_every: int
    early: int


@dataclass
class SequenceRun:
    """What was measured of one run.

    Args:
        ranks: effective rank by matrix, then by step.
        alignments: by step, the alignment of every pair of consecutive matrices.
        losses: on training samples, of the whole network ("full") and of both parts of its spectra.
        scored: measures on the validation samples.
    """

    ranks: dict[str, dict[int, float]] = field(default_factory=dict)
    alignments: dict[int, dict[str, PairAlignment]] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)
    scored: dict[str, float] = field(default_factory=dict)

    def mean_over_kind(
        self, network: str, kind: str, step: int, read: Callable[[PairAlignment], float]
    ) -> float:
        """The mean over all pairs of a kind at a step of what ``read`` takes from them."""
        pair_kind = KINDS[network][kind]
        values = [
            read(p) for name, p in self.alignments[step].items() if kind_of(name) == pair_kind
        ]
        return sum(values) / len(values)


def sequence_setting(network: str, scale: Scale, workspace: Workspace) -> SequenceSetting:
    """The runs of a network: spoken digits for the LSTM, a text by characters for the Transformer.

    At the quick scale both read a module of Python's standard library, which is always there.
    """
    recipe = _RECIPES[network]
    if scale == "quick":
        text = workspace.folder / "text"
        text.mkdir(exist_ok=True)
        (text / "input.txt").write_text(inspect.getsource(argparse), encoding="utf-8")
        task_section = {"name": "shakespeare", "folder": str(text), "context": 32}
        length = {"task": task_section, "model": _SMALL[network], "steps": 120, "batch_size": 16}
        task, measure_every, early = shakespeare(folder=str(text), context=32), 30, 60
    elif network == "LSTM":
        length = {"task": "spoken_digits", "epochs": 12, "batch_size": 64}
        # About half an epoch, and two of them.
        task, measure_every, early = spoken_digits(), 21, 84
    else:
        task_section = {"name": "shakespeare", "context": 64}
        length = {"task": task_section, "steps": 800, "batch_size": 16}
        task, measure_every, early = shakespeare(context=64), 40, 200
    probe = {"name": "spectral", "every": measure_every, "pairs": "auto"}
    # Scored once, at the end.
    common = {"clip_norm": 1.0, "evaluate_every": 10_000, "device": "cpu", "probes": [probe]}
    return SequenceSetting(recipe | length | common, task, measure_every, early)


def train_sequence_model(
    setting: SequenceSetting, *, decay: float, seed: int, workspace: Workspace
) -> SequenceRun:
    """Trains a network with a strength of weight decay and reads what was measured on the way.

    Args:
        setting: the setting of the runs.
        decay: AdamW's, of weights, not of norms and biases.
        seed: of weights and of the order of the data.
        workspace: where the run may keep its files until it has been read.
    """
    optimizer = setting.recipe["optimizer"] | {"weight_decay": decay}
    recipe = setting.recipe | {"optimizer": optimizer, "seed": seed}
    with tempfile.TemporaryDirectory(dir=workspace.folder) as folder:
        run = train(parse_recipe(recipe), folder=Path(folder) / "run", show_progress=False)
        return _read(run, setting.task)


def _read(run: RunResult, task: Task) -> SequenceRun:
    if run.model is None:
        raise WorkError(f"{run.folder.path}: a fresh run has left no model")
    measured = SequenceRun(scored=dict(run.summary["evaluations"]["trained"]))
    for step, path in snapshot_paths(run.folder.spectra_folder).items():
        measured.alignments[step] = read_alignments(path)
        for spectrum in read_snapshot(path):
            rank = effective_rank(torch.tensor(spectrum.values)).item()
            measured.ranks.setdefault(spectrum.name, {})[step] = rank
    samples = task.train.gather(torch.arange(min(SCORED, len(task.train))))

    def loss(model: nn.Module) -> dict[str, float]:
        scores = task.objective.evaluate(model, samples, torch.Generator())
        return {"loss": scores["loss"].item()}

    parts = truncation_scores(run.model.eval(), loss, example_inputs=task.example_inputs)
    measured.losses = {part: scores["loss"] for part, scores in parts.items()}
    return measured


def kind_of(pair: str) -> str:
    """A pair's name without the places of its layers, such as "linear1.weight->linear2.weight"."""
    return "->".join(_without_place(name) for name in pair.split("->"))


def _without_place(name: str) -> str:
    # A recurrent weight is named weight_ih_l2_reverse; that of a block blocks.2.linear1.weight.
    for part in ("[forward]", "[backward]", "_reverse"):
        name = name.replace(part, "")
    words = name.split(".")
    if words[-1].startswith("weight_"):
        return words[-1].rpartition("_l")[0]
    return ".".join(words[-2:])
