"""Continuous sparsification of ResNet-20 on CIFAR-10 in the authors' setting, one round.

One training each: dense, with masks, and with magnitudes pruned step by step. Tickets, which need a
second training, are in ``ticket_search_cifar10``. Needs the data. At cpu scale 5,000 training and
2,000 test images, five epochs without augmentation, in batches of 64 so that there are more steps;
most logits are still undecided after them. The full scale is the authors' protocol and, to be done
in an hour rather than in days, needs a GPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from latewood.core import read_tensors, recalibrate_batch_norm
from latewood.core.masks import keep_largest
from latewood.core.modes import evaluated
from latewood.experiments.papers import CONTINUOUS_SPARSIFICATION
from latewood.experiments.registry import (
    Claim,
    Experiment,
    Results,
    Scale,
    Workspace,
    register,
    replicate,
)
from latewood.sparsity import maskable
from latewood.tasks import Task, batches
from latewood.training import components
from latewood.training.recipe import Recipe, parse_recipe
from latewood.training.run import train
from latewood.training.run_folder import RunFolder

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

PART: dict[str, Any] = {
    "task": {"name": "cifar10", "limit_train": 5000, "limit_validation": 2000, "augment": False},
    "epochs": 5,
    "batch_size": 64,
    "drop_last": True,
    "evaluate_every": 390,
    "channels_last": True,
    "device": "cpu",
}
"""What differs at cpu scale: a part of the data, 390 steps, and one validation at their end."""

CHANGES: dict[Scale, dict[str, Any]] = {"cpu": PART, "full": {}}
SEEDS: dict[Scale, int] = {"cpu": 3, "full": 1}
RECALIBRATION_BATCHES = 50


def run(scale: Scale, workspace: Workspace) -> Results:
    """Trains dense, sparse and gradually pruned; runs go on where they were stopped."""
    common = RECIPE | CHANGES[scale]

    def measure(seed: int) -> dict[str, float]:
        def trained(name: str, methods: list[dict[str, Any]]) -> RunFolder:
            recipe = parse_recipe(common | {"methods": methods, "seed": seed})
            folder = RunFolder(workspace.folder / f"{name}-{seed}")
            return train(recipe, folder=folder.path, resume=folder.exists).folder

        dense, sparse = trained("dense", []), trained("sparse", [METHOD])
        recipe = parse_recipe(common | {"seed": seed})
        task, model = _built(recipe)
        nonzero, total = _count_weights(model, sparse)
        density = nonzero / total
        gradual = trained("gradual", [{"name": "gradual_magnitude_pruning", "density": density}])
        return {
            "dense": _accuracy_of(dense, "trained"),
            "soft": _accuracy_of(sparse, "trained"),
            "hard": _accuracy_of(sparse, "finalized"),
            "recalibrated": _accuracy_of(sparse, "recalibrated"),
            "gradual": _accuracy_of(gradual, "recalibrated"),
            "one shot": _one_shot(recipe, task, model, dense, nonzero),
            "density": density,
            "undecided": _undecided(sparse),
        }

    settings = {"epochs": common["epochs"], "batch size": common["batch_size"], "rounds": 1}
    if scale == "cpu":
        settings["images"] = f"{PART['task']['limit_train']} of 50000"
    return replicate(measure, range(SEEDS[scale]), workspace, title="seeds", settings=settings)


def _accuracy_of(run: RunFolder, stage: str) -> float:
    accuracy: float = run.summary["evaluations"][stage]["accuracy"]
    return accuracy


def _undecided(run: RunFolder) -> float:
    values = [
        row[name] for row in run.read_metrics() for name in row if name.endswith("/undecided")
    ]
    return float(values[-1])


def _built(recipe: Recipe) -> tuple[Task, nn.Module]:
    task: Task = components.build("task", recipe.task, "task")
    section = recipe.model or {"name": task.model}
    offered = dict(task.model_arguments)
    return task, components.build("model", section, "model", offered=offered)


def _prunable(model: nn.Module) -> dict[str, Tensor]:
    """The weights that all three ways may prune."""
    return {weight.name: weight.stored.detach() for weight in maskable(model, ("*",), None)}


def _count_weights(model: nn.Module, run: RunFolder) -> tuple[int, int]:
    """How many of the prunable weights a run left, and of how many."""
    model.load_state_dict(read_tensors(run.model_path))
    weights = _prunable(model).values()
    return sum(int(weight.count_nonzero()) for weight in weights), sum(
        weight.numel() for weight in weights
    )


def _one_shot(recipe: Recipe, task: Task, model: nn.Module, run: RunFolder, count: int) -> float:
    """Accuracy of the dense run's model with only its largest weights, norms recalibrated."""
    model.load_state_dict(read_tensors(run.model_path))
    weights = _prunable(model)
    for name, mask in keep_largest(weights, count).items():
        weights[name].mul_(mask)
    order = batches(task.train, batch_size=recipe.last_batch_size, seed=recipe.seed, epoch=0)
    samples = [batch for batch, _ in (next(order) for _ in range(_batch_count(task, recipe)))]
    recalibrate_batch_norm(model, samples)
    return _accuracy(model, task)


def _batch_count(task: Task, recipe: Recipe) -> int:
    return min(RECALIBRATION_BATCHES, len(task.train) // recipe.last_batch_size)


@torch.no_grad()
def _accuracy(model: nn.Module, task: Task) -> float:
    hits = 0
    with evaluated(model):
        for part in torch.arange(len(task.validation)).split(500):
            inputs, labels = task.validation.gather(part)
            predicted: Tensor = model(inputs).argmax(1)
            hits += int((predicted == labels).sum())
    return hits / len(task.validation)


def _against(results: Results, rival: str, *others: str) -> str:
    shares = results.texts("recalibrated", rival, *others, scale=100, unit="%")
    gap = results.difference_text("recalibrated", rival, scale=100, unit="points")
    return f"{shares}; recalibrated over {rival} {gap}"


_README = (
    "[P] the authors' README, for tickets of 3 rounds, retrained; here one round, not retrained"
)

EXPERIMENT = register(
    Experiment(
        name="continuous-sparsification-cifar10",
        title="Continuous sparsification of ResNet-20 on CIFAR-10, one round",
        paper=f"{CONTINUOUS_SPARSIFICATION}, and its code",
        run=run,
        scales=("cpu", "full"),
        claims=(
            Claim(
                "as-good-as-dense",
                "The sparse network, batch norms recalibrated, is at most 1 point behind dense.",
                _README,
                "ticket 91.5 to 92.0 %, dense 90 to 91 %",
                lambda r: _against(r, "dense", "soft", "hard"),
                lambda r: r.difference("dense", "recalibrated") <= 0.01,
                scales=("cpu", "full"),
            ),
            Claim(
                "density",
                "It has at most 50 % of the weights.",
                _README,
                "20 to 30 %",
                lambda r: r.texts("density", "undecided", scale=100, unit="%"),
                lambda r: r.mean("density") <= 0.5,
                scales=("cpu", "full"),
            ),
            Claim(
                "against-one-shot-magnitude",
                "In the mean it is better than the dense network with as many of its largest "
                "weights.",
                "[P] abstract: better than the state of the art in pruning",
                "none for this comparison",
                lambda r: _against(r, "one shot"),
                lambda r: r.difference("recalibrated", "one shot") > 0,
                scales=("cpu", "full"),
            ),
            Claim(
                "against-gradual-magnitude",
                "In the mean it is better than gradual magnitude pruning to its density in as many "
                "epochs.",
                "[P] abstract: better than the state of the art in pruning",
                "none for this comparison",
                lambda r: _against(r, "gradual"),
                lambda r: r.difference("recalibrated", "gradual") > 0,
                scales=("cpu", "full"),
            ),
        ),
    )
)
