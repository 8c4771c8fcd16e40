"""Time of trying all 148,995 sets of four precision patterns for ResNet-20, and what they cost."""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import nn

from benchmarks._timing import print_table
from latewood.models import resnet20
from latewood.precision.simd import LayerCounts, count_layers, evaluate_set, explore

__all__ = ["main"]

SHARES = {4: 0.125, 2: 0.25, 1: 0.625}


def main(arguments: list[str]) -> None:
    """Prints the time, processor seconds of one thread, and the best sets of one to four patterns.

    Bits of channels are drawn at random, 12.5/25/62.5 % of 4/2/1 bits, so that all layers differ:
    the exploration cannot use what it knows of an equal layer.

    Args:
        arguments: number of rounds, 3 if left out.
    """
    rounds = int(arguments[0]) if arguments else 3
    layers = _layers()
    least: dict[str, float] = {}
    for _ in range(rounds):
        cpu, wall = time.process_time(), time.perf_counter()
        explore(layers)
        spent = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
        least = {name: min(least.get(name, spent[name]), spent[name]) for name in spent}
    distinct = len({layer.counts for layer in layers})
    row = ["148,995", f"{len(layers)}, {distinct} distinct", *(f"{t:.1f}" for t in least.values())]
    title = "All sets of four patterns for ResNet-20"
    print_table(title, ["sets", "layers", "processor s", "wall s"], [row])
    _print_best(layers)


def _print_best(layers: tuple[LayerCounts, ...]) -> None:
    best = {f"best of {size}": explore(layers, size=size).best() for size in (1, 2, 3, 4)}
    best["three uniform"] = evaluate_set(layers, (0, 8, 44))
    best["all 45"] = evaluate_set(layers, 45)
    rows = []
    for name, choice in best.items():
        patterns = " ".join("({},{},{})".format(*pattern) for pattern in choice.patterns)
        rows.append(
            [
                name,
                patterns if len(choice.patterns) <= 4 else "all",
                f"{choice.vectors:,}",
                f"{choice.cycles:,.0f}",
                f"{choice.compute_uj:.3f}",
                f"{choice.memory_uj:.2f}",
                f"{choice.promoted:,}",
                f"{choice.area:,}",
            ]
        )
    header = ["set", "patterns", "vectors", "cycles", "compute uJ", "memory uJ", "promoted", "area"]
    print_table("What one image takes (drawn bits, not learned ones)", header, rows)


def _layers() -> tuple[LayerCounts, ...]:
    model = resnet20()
    generator = np.random.default_rng(0)
    inner = [name for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)][1:]
    bits = {
        name: generator.choice(
            list(SHARES), p=list(SHARES.values()), size=model.get_submodule(name).in_channels
        ).tolist()
        for name in inner
    }
    return count_layers(model, torch.zeros(1, 3, 32, 32), bits).layers
