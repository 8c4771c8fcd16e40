"""A training step with the noise of learned precision over the plain step, and the noise alone."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks._timing import interleaved_minima, print_table
from latewood.core import parameter_groups
from latewood.kernels.noise import noisy, noisy_reference
from latewood.models import resnet20
from latewood.precision import LearnedPrecision

__all__ = ["main"]

BATCH = 128


def main(arguments: list[str]) -> None:
    """Prints steps of ResNet-20 at batch 128 and the noise of one layer's input, on one thread.

    CPU time, so that other work on the machine counts less.

    Args:
        arguments: rounds without a faster time after which a table ends, 8 if left out.
    """
    rounds = int(arguments[0]) if arguments else 8
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    _print(f"One step of ResNet-20, batch {BATCH}", _steps(), rounds, 1e3, "ms")
    _print("Noise on 128 x 16 x 32 x 32, both passes", _noises(), rounds, 1e3, "ms")
    torch.set_num_threads(before)


def _print(
    title: str,
    candidates: dict[str, Callable[[], object]],
    rounds: int,
    unit: float,
    name: str,
) -> None:
    seconds = interleaved_minima(candidates, rounds=rounds, clock=time.process_time)
    first = next(iter(seconds.values()))
    rows = [[form, f"{unit * best:.1f}", f"{best / first:.2f}"] for form, best in seconds.items()]
    print_table(title, ["form", name, "over the first"], rows)


def _steps() -> dict[str, Callable[[], object]]:
    return {
        "plain": _step(None),
        "weights noised": _step(False),
        "weights and inputs noised": _step(True),
        "weights and inputs, plain torch": _step(True, compiled=False),
    }


def _step(activations: bool | None, *, compiled: bool = True) -> Callable[[], object]:
    torch.manual_seed(0)
    model = resnet20().train()
    inputs, labels = torch.randn(BATCH, 3, 32, 32), torch.randint(10, (BATCH,))
    methods = []
    if activations is not None:
        method = LearnedPrecision(
            model, total_steps=100_000, target_bits=2.0, activations=activations
        )
        methods.append(method)
    optimizer = torch.optim.SGD(parameter_groups(model, methods), lr=0.01, momentum=0.9)

    def run() -> None:
        with _reference(not compiled):
            loss: Tensor = F.cross_entropy(model(inputs), labels)
            for method in methods:
                loss = loss + method.penalty()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            for method in methods:
                method.step()

    return run


@contextmanager
def _reference(wanted: bool) -> Iterator[None]:
    """Has all kernels in plain torch for a while."""
    name = "LATEWOOD_KERNELS"
    before = os.environ.get(name)
    if wanted:
        os.environ[name] = "reference"
    try:
        yield
    finally:
        if wanted and before is None:
            del os.environ[name]
        elif wanted and before is not None:
            os.environ[name] = before


def _noises() -> dict[str, Callable[[], object]]:
    values = torch.randn(BATCH, 16, 32, 32, requires_grad=True)
    turned = values.detach().to(memory_format=torch.channels_last).requires_grad_()
    width = nn.Parameter(torch.rand(16, 1, 1))
    low, high, key = torch.tensor(-1.5), torch.tensor(1.5), torch.tensor(1)
    gradient = torch.randn(values.shape)

    def both(form: Callable[..., Tensor], given: Tensor) -> Callable[[], object]:
        def run() -> None:
            result = form(given, width, key, low=low, high=high)
            torch.autograd.grad(result, (given, width), gradient)

        return run

    def naive() -> None:
        noise = 2 * torch.rand_like(values) - 1
        clipped = torch.minimum(torch.maximum(values, low + width), high - width)
        torch.autograd.grad(clipped + width * noise, (values, width), gradient)

    return {
        "rand_like and operators of torch": naive,
        "one native pass each way": both(noisy, values),
        "the same, channels last": both(noisy, turned),
        "reference": both(noisy_reference, values),
    }
