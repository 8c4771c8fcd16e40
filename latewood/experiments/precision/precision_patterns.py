"""Which widths and how many patterns a machine needs, for the bits that two networks learned.

A convolutional network and a perceptron learn bits for each input channel on the digits. One
machine computes both; all its pattern sets of up to four are tried. Quick and cpu scale are the
same, with shorter trainings and fewer seeds at quick.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from latewood.core import finalize, parameter_groups
from latewood.core.modes import evaluated
from latewood.core.schedules import cosine, progress
from latewood.experiments.registry import (
    Claim,
    Experiment,
    Results,
    Scale,
    Workspace,
    register,
    replicate,
)
from latewood.models import convnet, mlp
from latewood.precision import PATTERNS, LearnedPrecision
from latewood.precision.simd import LayerCounts, PatternChoice, count_layers, evaluate_set, explore
from latewood.tasks.digits import digits
from latewood.training.fit import fit
from latewood.training.randomness import derive, seed_torch

__all__ = ["PRECISION_PATTERNS"]

EPOCHS: Mapping[str, int] = {"quick": 1, "cpu": 15}
SEEDS: Mapping[str, int] = {"quick": 1, "cpu": 3}
CHANNELS = (16, 32, 32)
HIDDEN = (96, 96, 96)
TARGET_BITS = 1.75
BATCH, RATE = 64, 3e-3

WITHOUT: Mapping[str, Sequence[int]] = {
    "without 1 bit": [i for i, (_, _, g1) in enumerate(PATTERNS) if g1 == 0],
    "without 2 bits": [i for i, (_, g2, _) in enumerate(PATTERNS) if g2 == 0],
    "4 bits alone": [len(PATTERNS) - 1],
}
"""Patterns of machines that lack a width; without 4-bit slots nothing holds 4-bit channels."""


def run(scale: Scale, workspace: Workspace) -> Results:
    """Trains, counts and explores, seed by seed."""
    epochs = EPOCHS[scale]

    def measure(seed: int) -> dict[str, float]:
        layers: list[LayerCounts] = []
        measured: dict[str, float] = {}
        for name in ("convnet", "mlp"):
            model, measured[f"{name} accuracy"], inputs = _trained(name, seed, epochs)
            layers += count_layers(model, inputs[:1]).layers
        elements = sum(layer.elements * layer.outputs for layer in layers)
        free = evaluate_set(layers, 45)
        measured["bits a weight"] = free.weight_bits / elements
        measured["vectors of all 45"] = float(free.vectors)
        for size in (1, 2, 3, 4, 8):
            done = explore(layers, size=size)
            measured[f"vectors of {size}"] = done.best("vectors").vectors / free.vectors
            measured[f"cost of {size}"] = _cost(done.best()) / _cost(free)
            if size == 4:
                measured["sets on the front"] = float(len(done.pareto))
        for name, candidates in WITHOUT.items():
            size = min(4, len(candidates))
            best = explore(layers, size=size, candidates=candidates).best()
            measured[f"cost {name}"] = _cost(best) / _cost(free)
        measured["cost of uniform patterns"] = _cost(evaluate_set(layers, (0, 8, 44))) / _cost(free)
        return measured

    settings = {
        "epochs of each training": epochs,
        "convolutional network": str(CHANNELS),
        "perceptron": str(HIDDEN),
        "target bits": TARGET_BITS,
        "cost": "energy times cycles of one sample of each network, over that with all 45 patterns",
    }
    return replicate(measure, range(SEEDS[scale]), workspace, settings=settings)


def _cost(choice: PatternChoice) -> float:
    return choice.energy_uj * choice.cycles


def _trained(name: str, seed: int, epochs: int) -> tuple[nn.Module, float, torch.Tensor]:
    """A finished network with learned bits, its accuracy, and inputs of it."""
    task = digits()
    inputs, labels = task.train.gather(torch.arange(len(task.train)))[:2]
    test_inputs, test_labels = task.validation.gather(torch.arange(len(task.validation)))[:2]
    with torch.random.fork_rng(devices=[]):
        seed_torch(derive(seed, name), torch.device("cpu"))
        model: nn.Module = (
            convnet(channels=CHANNELS)
            if name == "convnet"
            else mlp(in_features=64, hidden=HIDDEN, num_classes=10, norm=True)
        )
    generator = torch.Generator().manual_seed(derive(seed, "batches"))
    batches = [
        part
        for _ in range(epochs)
        for part in torch.randperm(len(inputs), generator=generator).split(BATCH)
    ]
    method = LearnedPrecision(
        model, total_steps=len(batches), target_bits=TARGET_BITS, activations=True, seed=seed
    )
    optimizer = torch.optim.Adam(parameter_groups(model, [method]), lr=RATE)
    decay = cosine()
    fit(
        model.train(),
        batches,
        lambda network, batch: F.cross_entropy(network(inputs[batch]), labels[batch]),
        optimizer,
        methods=[method],
        rate_factor=lambda step: decay(progress(step, len(batches))),
    )
    finalize(model, [method])
    with evaluated(model), torch.no_grad():
        right = model(test_inputs).argmax(1) == test_labels
    return model, float(right.double().mean()), inputs


def _between(results: Results, less: str, more: str) -> bool:
    return results.mean(less) < results.mean(more)


_SIZES = tuple(f"cost of {size}" for size in (1, 2, 3, 4, 8))

PRECISION_PATTERNS = register(
    Experiment(
        name="precision-patterns",
        title="Widths and patterns of a machine for learned bits",
        paper="SySMOL, arXiv:2311.14114 (v1, 2023)",
        run=run,
        scales=("quick", "cpu"),
        claims=(
            Claim(
                "four-patterns-suffice",
                "The best set of four patterns needs at most 2 % more vectors than all 45.",
                "[P] v1: four configurable patterns are the best trade-off found",
                "-",
                lambda r: r.texts("vectors of 4", "vectors of 1", digits=4),
                lambda r: max(r.values("vectors of 4")) <= 1.02,
            ),
            Claim(
                "the-fourth-pattern-pays",
                "The fourth pattern lowers energy times cycles by at least 1 %, four more by less.",
                "[P] v1: four configurable patterns are the best trade-off found; [I] the bound",
                "-",
                lambda r: r.texts(*_SIZES, digits=4),
                lambda r: (
                    r.mean("cost of 4") <= 0.99 * r.mean("cost of 3")
                    and r.mean("cost of 8") > 0.99 * r.mean("cost of 4")
                ),
            ),
            Claim(
                "mixed-patterns-pay",
                "Four patterns cost less than the three uniform ones, by at least 5 %.",
                "[P] v1: patterns hold several precisions; [I] the bound",
                "-",
                lambda r: r.texts("cost of 4", "cost of uniform patterns", digits=4),
                lambda r: r.mean("cost of 4") <= 0.95 * r.mean("cost of uniform patterns"),
            ),
            Claim(
                "all-three-widths-pay",
                "For the same bits, four patterns of 1, 2 and 4 bits cost less than four without 1 "
                "bit, four without 2 bits, or 4 bits alone.",
                "[P] v1: operations of 1, 2 and 4 bits are the best trade-off found",
                "-",
                lambda r: r.texts("cost of 4", *(f"cost {name}" for name in WITHOUT), digits=3),
                lambda r: all(_between(r, "cost of 4", f"cost {name}") for name in WITHOUT),
            ),
        ),
    )
)
