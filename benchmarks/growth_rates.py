"""What learning rates by stage add to a training step, in processor time."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks._timing import interleaved_minima, print_table
from latewood.core import trace_channels
from latewood.growth import StageRates, Stages, width_schedule

__all__ = ["main"]

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD, momentum": lambda p: torch.optim.SGD(p, lr=1e-6, momentum=0.9),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-7),
}


def main(arguments: list[str]) -> None:
    """Prints, for a network in the last of its phases, a step's time and what the rates add.

    Args:
        arguments: number of phases, and rounds; 9 and 20 if empty.
    """
    phases = int(arguments[0]) if arguments else 9
    rounds = int(arguments[1]) if len(arguments) > 1 else 20
    torch.set_num_threads(1)
    rows = []
    for title, (model, inputs) in _networks().items():
        stages = _stages(model, inputs, phases)
        for name, build in OPTIMIZERS.items():
            rows.append([title, name, *_row(model, inputs, stages, build, rounds)])
    header = ["network, batch", "optimizer", "step, ms", "rates add", "with counters"]
    print_table(f"Learning rates by stage, {phases} phases", header, rows)


def _row(
    model: nn.Module,
    inputs: Tensor,
    stages: Stages,
    build: Callable[[Any], torch.optim.Optimizer],
    rounds: int,
) -> list[str]:
    labels = torch.arange(len(inputs)) % 10
    candidates: dict[str, Callable[[], object]] = {}
    for kind in ("plain", "rates", "counters"):
        network = copy.deepcopy(model)
        optimizer = build(network.parameters())
        if kind != "plain":
            StageRates(network, stages, counters=kind == "counters").attach(optimizer)
        F.cross_entropy(network(inputs), labels).backward()
        candidates[kind] = optimizer.step
    candidates["gradients"] = lambda: F.cross_entropy(model(inputs), labels).backward()
    best = interleaved_minima(candidates, rounds=rounds, clock=time.process_time)
    step = best["gradients"] + best["plain"]
    added = [(best[kind] - best["plain"]) / step for kind in ("rates", "counters")]
    return [f"{1000 * step:.1f}", *(f"{100 * share:+.1f} %" for share in added)]


def _stages(model: nn.Module, inputs: Tensor, phases: int) -> Stages:
    """Stages as if the free groups had grown from a quarter of their width."""
    tensors = dict(model.named_parameters())
    vectors: dict[tuple[str, int], Tensor] = {}
    for group in trace_channels(model, inputs).free:
        first = max(2, group.width // 4 // 2 * 2)
        born = torch.zeros(group.width, dtype=torch.long)
        if (group.width - first) % 2 == 0:
            for edge in width_schedule(first, group.width, phases)[:-1]:
                born[edge:] += 1
        for member in group.members:
            if member.tensor in tensors:
                size = tensors[member.tensor].shape[member.axis]
                key = (member.tensor, member.axis)
                vector = vectors.setdefault(key, torch.zeros(size, dtype=torch.long))
                vector[member.indices] = born[:, None].expand_as(member.indices)
    return Stages(phases - 1, vectors)


def _networks() -> dict[str, tuple[nn.Module, Tensor]]:
    torch.manual_seed(0)
    wide, narrow = _convolutions((64, 128, 256), 2), _convolutions((16, 32, 64), 4)
    return {
        "convolutions 64/128/256, 32": (wide, torch.randn(32, 3, 32, 32)),
        "convolutions 16/32/64, 64": (narrow, torch.randn(64, 3, 32, 32)),
        "Transformer 3 x 256, 8 x 64": (_Transformer(), torch.randint(0, 100, (8, 64))),
        "MLP 3072-1024-1024, 128": (_perceptron(3072, 1024), torch.randn(128, 3072)),
        "MLP 768-512-512, 128": (_perceptron(768, 512), torch.randn(128, 768)),
    }


def _perceptron(inputs: int, width: int) -> nn.Module:
    layers = [nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def _convolutions(widths: tuple[int, ...], depth: int) -> nn.Module:
    layers: list[nn.Module] = []
    channels = 3
    for width in widths:
        for number in range(depth):
            stride = 2 if number == depth - 1 else 1
            convolution = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
            layers += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


class _Transformer(nn.Module):
    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.embedding = nn.Embedding(100, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, batch_first=True, norm_first=True)
            for _ in range(3)
        )
        self.head = nn.Linear(width, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        states = self.embedding(tokens)
        for layer in self.layers:
            states = layer(states)
        return self.head(states[:, -1])
