"""Faults: cells drawn and read, maps evaluated, and what drop-connect adds to a step: CPU time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks._timing import print_table
from latewood.faults import Crossbar, DropConnect, StuckAt
from latewood.faults.encoding import encode
from latewood.faults.injection import Injection
from latewood.kernels.dispatch import native
from latewood.kernels.faults import CellLayout, Stream, digits_of, read_drawn
from latewood.models import mlp, resnet20

__all__ = ["main"]

MIXED = StuckAt(0.0904, 0.0175)
WIDE = Crossbar(8, 2)


def main(arguments: list[str]) -> None:
    """Prints milliseconds of CPU time and ratios, least of interleaved rounds, one thread.

    Args:
        arguments: rounds of each candidate, 15 if left out; after it "resnet" to time the steps
            of ResNet-20 at batch 128 too, which takes minutes.
    """
    rounds = int(arguments[0]) if arguments else 15
    torch.set_num_threads(1)
    if native() is None:
        print("the compiled kernels are not built: 'native' below is the reference")
    _sampling(rounds)
    _evaluation(rounds)
    _steps("MLP 784-512-256-10, batch 64", _perceptron, rounds)
    if "resnet" in arguments[1:]:
        _steps("ResNet-20, batch 128", _residual, max(3, rounds // 5))


def _sampling(rounds: int) -> None:
    weight = torch.randn(784 * 512, generator=torch.Generator().manual_seed(0))
    codes, layout = encode(weight, WIDE).codes, WIDE.layout
    levels = digits_of(codes, layout)
    as_numpy = levels.numpy().astype(numpy.float32)
    generator = numpy.random.default_rng(0)

    def uniforms() -> Tensor:
        read = torch.zeros(len(codes))
        for cell, digit in zip(layout.cells, levels, strict=True):
            drawn = torch.rand(len(codes))
            level = torch.where(drawn < MIXED.hrs, 0, digit)
            level = torch.where(drawn >= 1 - MIXED.lrs, cell.stuck, level)
            read += level * (cell.sign * 2.0**cell.shift)
        return read

    def loop() -> object:
        read = numpy.zeros(len(codes), dtype=numpy.float32)
        for cell, digit in zip(layout.cells, as_numpy, strict=True):
            drawn = generator.random(len(codes))
            level = numpy.where(drawn < MIXED.hrs, 0, digit)
            level = numpy.where(drawn >= 1 - MIXED.lrs, cell.stuck, level)
            read += level * (cell.sign * 2.0**cell.shift)
        return read

    candidates: dict[str, Callable[[], object]] = {
        "latewood, native": lambda: _read(codes, layout),
        "latewood, reference": lambda: _reference(codes, layout),
        "torch uniforms, a cell at a time": uniforms,
        "NumPy float64 uniforms, a cell at a time": loop,
    }
    times = _least(candidates, rounds)
    print_table(
        f"{len(codes):,} weights of {len(layout.cells)} cells drawn and read ({MIXED.rate:.2%})",
        ["form", "CPU ms a map", "over native"],
        [[name, f"{1e3 * s:.2f}", f"{s / times['latewood, native']:.1f}"]
         for name, s in times.items()],
    )  # fmt: skip


def _read(codes: Tensor, layout: CellLayout) -> Tensor:
    return read_drawn(codes, layout, Stream(0, 0, "layer"), MIXED.limits)


def _reference(codes: Tensor, layout: CellLayout) -> Tensor:
    with _forced("reference"):
        return _read(codes, layout)


def _evaluation(rounds: int) -> None:
    model = mlp(in_features=784, hidden=(512, 256), num_classes=10).eval()
    inputs = torch.randn(500, 784, generator=torch.Generator().manual_seed(0))
    stored = [p for p in model.parameters() if p.dim() == 2]
    clean = [p.detach().clone() for p in stored]

    @torch.no_grad()
    def by_hand() -> None:
        """Single pairs, a float32 uniform for each of their two cells: the shortest loop."""
        for parameter, weight in zip(stored, clean, strict=True):
            peak = weight.abs().max()
            read = torch.zeros_like(weight)
            for sign in (1, -1):
                drawn = torch.rand_like(weight)
                level = torch.where(drawn < MIXED.hrs, 0, (sign * weight).clamp(min=0))
                read += sign * torch.where(drawn >= 1 - MIXED.lrs, peak, level)
            parameter.copy_(read)
        model(inputs)
        for parameter, weight in zip(stored, clean, strict=True):
            parameter.copy_(weight)

    with torch.no_grad():
        forward = _least({"forward": lambda: model(inputs)}, rounds)["forward"]
        hand = _least({"hand": by_hand}, rounds)["hand"]
        with Injection(model, Crossbar(2, 1), MIXED) as one, torch.no_grad():
            pairs = _least({"pairs": lambda: (one.use_map(0), model(inputs))}, rounds)["pairs"]
        with Injection(model, WIDE, MIXED) as many:
            sliced = _least({"sliced": lambda: (many.use_map(0), model(inputs))}, rounds)["sliced"]
    print_table(
        "A map of MLP 784-512-256-10 on 500 inputs",
        ["form", "CPU ms a map", "over the loop by hand"],
        [
            [name, f"{1e3 * s:.1f}", f"{s / hand:.2f}"]
            for name, s in (
                ("forward pass alone", forward),
                ("loop by hand, 2 cells a weight", hand),
                ("latewood, 2 cells a weight", pairs),
                ("latewood, 8 cells a weight", sliced),
            )
        ],
    )


def _perceptron() -> tuple[nn.Module, Tensor, Tensor]:
    inputs = torch.randn(64, 784, generator=torch.Generator().manual_seed(0))
    return mlp(in_features=784, hidden=(512, 256), num_classes=10), inputs, torch.arange(64) % 10


def _residual() -> tuple[nn.Module, Tensor, Tensor]:
    inputs = torch.randn(128, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return resnet20(num_classes=10, in_channels=3), inputs, torch.arange(128) % 10


class _DroppedByTorch(nn.Module):
    """Functional dropout on the weight, as it is often written."""

    def forward(self, weight: Tensor) -> Tensor:
        return F.dropout(weight, 0.1)


def _steps(title: str, case: Callable[[], tuple[nn.Module, Tensor, Tensor]], rounds: int) -> None:
    candidates: dict[str, Callable[[], object]] = {}
    for name, arguments in (
        ("plain", None),
        ("dropout on weights (torch)", "torch"),
        ("drop-connect", {"rate": 0.1}),
        ("cells emulated, 6 a weight", {"rate": 0.1, "emulate": "cells"}),
    ):
        model, inputs, labels = case()
        methods = []
        if arguments == "torch":
            for module in list(model.modules()):
                if isinstance(module, nn.Linear | nn.Conv2d):
                    nn.utils.parametrize.register_parametrization(
                        module, "weight", _DroppedByTorch()
                    )
        elif isinstance(arguments, dict):
            methods = [DropConnect(model, **arguments)]
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

        def step(
            model: nn.Module = model,
            inputs: Tensor = inputs,
            labels: Tensor = labels,
            optimizer: torch.optim.Optimizer = optimizer,
            methods: list[DropConnect] = methods,
        ) -> None:
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
            for method in methods:
                method.step()

        candidates[name] = step
    times = _least(candidates, rounds)
    print_table(
        f"A training step of {title}",
        ["training", "CPU ms", "over plain"],
        [[name, f"{1e3 * s:.1f}", f"{s / times['plain']:.3f}"] for name, s in times.items()],
    )


def _least(candidates: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The least CPU time of each, in interleaved rounds."""
    best = dict.fromkeys(candidates, float("inf"))
    for run in candidates.values():
        run()
    for _ in range(rounds):
        for name, run in candidates.items():
            begun = time.process_time()
            run()
            best[name] = min(best[name], time.process_time() - begun)
    return best


@contextmanager
def _forced(form: str) -> Iterator[None]:
    before = os.environ.get("LATEWOOD_KERNELS")
    os.environ["LATEWOOD_KERNELS"] = form
    try:
        yield
    finally:
        if before is None:
            del os.environ["LATEWOOD_KERNELS"]
        else:
            os.environ["LATEWOOD_KERNELS"] = before
