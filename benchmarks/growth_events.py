"""What a growth event takes beside a training step, in processor time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks._timing import print_table
from latewood.growth import Growth
from latewood.models import mlp, resnet20, transformer

__all__ = ["main"]

_PHASES = 4


def main(arguments: list[str]) -> None:
    """Prints, for networks that grow by half in three events, what the cheapest takes.

    Args:
        arguments: number of runs; 3 if empty.
    """
    runs = int(arguments[0]) if arguments else 3
    torch.set_num_threads(1)
    rows = []
    for title, (build, inputs) in _networks().items():
        step, event = (1000 * least for least in _least_times(build, inputs, runs))
        rows.append([title, f"{step:.1f}", f"{event:.1f}", f"{event / step:.2f}"])
    print_table("Growth events", ["network, batch", "step, ms", "event, ms", "ratio"], rows)


def _least_times(build: Callable[[], nn.Module], inputs: Tensor, runs: int) -> tuple[float, float]:
    steps, events = [], []
    for _ in range(runs):
        model = build()
        schedule = {"name": "phased", "end": 1.5, "phases": _PHASES, "rate": 0.2}
        lengths: dict[str, Any] = {"total_steps": 3 * _PHASES, "steps_per_epoch": 3}
        growth = Growth(
            model, inputs[:1], schedule={**schedule, "epochs": [1] * _PHASES}, **lengths
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        for epoch in range(_PHASES):
            start = time.process_time()
            if growth.restructure(optimizer) and epoch > 1:
                events.append(time.process_time() - start)
            for _ in range(3):
                start = time.process_time()
                optimizer.zero_grad()
                model(inputs).float().square().mean().backward()
                optimizer.step()
                growth.step()
                steps.append(time.process_time() - start)
    return min(steps), min(events)


def _networks() -> dict[str, tuple[Callable[[], nn.Module], Tensor]]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(64, 3, 32, 32, generator=generator)
    vectors = torch.randn(128, 768, generator=generator)
    tokens = torch.randint(65, (8, 64), generator=generator)
    return {
        "ResNet-20, 64": (lambda: resnet20(num_classes=10), images),
        "Transformer, 3 layers of 256, 8 x 64": (
            lambda: transformer(vocabulary=65, context=64, width=256, layers=3, heads=8),
            tokens,
        ),
        "MLP 768-410-410, 128": (
            lambda: mlp(in_features=768, hidden=(410, 410), num_classes=10),
            vectors,
        ),
    }
