"""Continuous sparsification of ResNet-20 on CIFAR-10 in the authors' setting, one round.

Needs the data and, to be done in an hour rather than in days, a GPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from latewood.core import read_tensors, recalibrate_batch_norm, select_parameters
from latewood.experiments.registry import Bench, Claim, Experiment, Results, Scale, register
from latewood.training import components
from latewood.training.data import batches
from latewood.training.loop import train
from latewood.training.recipe import Recipe, parse_recipe
from latewood.training.run_folder import RunFolder
from latewood.training.task import Task

__all__ = ["EXPERIMENT"]

METHOD = {"name": "continuous_sparsification", "initial_logit": 0.0, "final_temperature": 200.0}

RECIPE: dict[str, Any] = {
    "task": {"name": "cifar10", "validation": 5000},
    "model": {"name": "resnet20", "init": "xavier_normal"},
    "epochs": 85,
    "batch_size": 128,
    "optimizer": {
        "name": "sgd",
        "lr": 0.1,
        "momentum": 0.9,
        "nesterov": True,
        "weight_decay": 1e-4,
    },
    "schedule": {
        "name": "step_decay",
        "milestones": [56 / 85, 71 / 85],
        "factor": 0.1,
        "per": "epoch",
    },
}
"""Source: the authors' code, its first round."""

RECALIBRATION_BATCHES = 50


def run(scale: Scale, bench: Bench) -> Results:
    """Trains dense and sparse; both runs go on where they were stopped."""
    recipes = {
        "dense": parse_recipe(RECIPE),
        "sparse": parse_recipe(RECIPE | {"methods": [METHOD]}),
    }
    runs: dict[str, RunFolder] = {}
    for name in bench.track(recipes, "runs"):
        folder = RunFolder(bench.folder / name)
        runs[name] = train(recipes[name], folder=folder.path, resume=folder.exists).folder
    dense, sparse = (runs[name].summary for name in ("dense", "sparse"))
    density = sparse["size"]["density"]
    found = {
        "dense": dense["readings"]["trained"]["accuracy"],
        "soft": sparse["readings"]["trained"]["accuracy"],
        "hard": sparse["readings"]["finalized"]["accuracy"],
        "recalibrated": sparse["readings"]["recalibrated"]["accuracy"],
        "one shot": _one_shot(recipes["dense"], runs["dense"], density),
        "density": density,
    }
    settings = {"seed": RECIPE.get("seed", 0), "epochs": RECIPE.get("epochs"), "rounds": 1}
    return Results({name: [value] for name, value in found.items()}, settings)


def _one_shot(recipe: Recipe, run: RunFolder, density: float) -> float:
    """Accuracy of the dense run's model with only its largest weights, norms recalibrated."""
    task: Task = components.build("task", recipe.task, "task")
    section = recipe.model or {"name": task.model}
    model: nn.Module = components.build(
        "model", section, "model", offered=dict(task.model_arguments)
    )
    model.load_state_dict(read_tensors(run.model_path))
    weights = [selected.stored for selected in select_parameters(model)]
    with torch.no_grad():
        magnitudes = torch.cat([weight.abs().flatten() for weight in weights])
        least = magnitudes.topk(max(1, round(density * len(magnitudes)))).values[-1]
        for weight in weights:
            weight.mul_(weight.abs() >= least)
    order = batches(task.train, batch_size=recipe.batch_size, seed=recipe.seed, epoch=0)
    samples = [batch for batch, _ in (next(order) for _ in range(_count(task, recipe)))]
    recalibrate_batch_norm(model, samples)
    return _accuracy(model, task)


def _count(task: Task, recipe: Recipe) -> int:
    return min(RECALIBRATION_BATCHES, len(task.train) // recipe.batch_size)


@torch.no_grad()
def _accuracy(model: nn.Module, task: Task) -> float:
    model.eval()
    hits = 0
    for part in torch.arange(len(task.validation)).split(500):
        inputs, labels = task.validation.gather(part)
        predicted: Tensor = model(inputs).argmax(1)
        hits += int((predicted == labels).sum())
    return hits / len(task.validation)


def _percent(results: Results, *names: str) -> str:
    return ", ".join(f"{name} {results.text(name, scale=100, unit='%')}" for name in names)


_README = (
    "[P] the authors' README, for tickets of 3 rounds, retrained; here one round, not retrained"
)

EXPERIMENT = register(
    Experiment(
        name="continuous-sparsification-cifar10",
        title="Continuous sparsification of ResNet-20 on CIFAR-10, one round",
        paper="Savarese, Silva, Maire: Winning the Lottery with Continuous Sparsification, 2020, "
        "arXiv:1912.04427, and its code",
        run=run,
        scales=("full",),
        claims=(
            Claim(
                "as-good-as-dense",
                "The sparse network, batch norms recalibrated, is at most 1 point behind dense.",
                _README,
                "ticket 91.5 to 92.0 %, dense 90 to 91 %",
                lambda r: _percent(r, "dense", "soft", "hard", "recalibrated"),
                lambda r: r.difference("dense", "recalibrated") <= 0.01,
                scales=("full",),
            ),
            Claim(
                "density",
                "It has at most 50 % of the weights.",
                _README,
                "20 to 30 %",
                lambda r: r.text("density", scale=100, unit="%"),
                lambda r: r.mean("density") <= 0.5,
                scales=("full",),
            ),
            Claim(
                "against-one-shot-magnitude",
                "It is better than the dense network with as many of its largest weights.",
                "[P] abstract: better than the state of the art in pruning",
                "none for this comparison",
                lambda r: _percent(r, "recalibrated", "one shot"),
                lambda r: r.difference("recalibrated", "one shot") > 0,
                scales=("full",),
            ),
        ),
    )
)
