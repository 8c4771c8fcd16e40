"""Optimizer steps over ResNet-34 parameters against torch.optim, peers and the memory's speed."""

from __future__ import annotations

import importlib.util
import math
import resource
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import Parameter

from benchmarks._timing import interleaved_minima, print_table
from latewood.kernels.optimizers import rate_sums
from latewood.models import resnet34
from latewood.optim import CSGD, AdaBound, AMSBound, AvaGrad, DelayedAdam

__all__ = ["main"]


def main(arguments: list[str]) -> None:
    """Prints the memory a step adds, steps for one and two threads, of many tensors, and accuracy.

    Args:
        arguments: the number of rounds each candidate is timed, 15 if left out.
    """
    rounds = int(arguments[0]) if arguments else 15
    before = torch.get_num_threads()
    # First, since the peak of all that follows would hide what a step adds.
    _print_memory()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        _print_steps(rounds)
    torch.set_num_threads(1)
    _print_many_tensors(rounds)
    _print_accuracy()
    torch.set_num_threads(before)


def _print_steps(rounds: int) -> None:
    # All candidates move the same tensors, by very little, so that none has them in a cache.
    parameters = _parameters()
    optimizers = {name: make(parameters) for name, make in _candidates()}
    steps: dict[str, Callable[[], object]] = {n: o.step for n, o in optimizers.items()}
    count = sum(p.numel() for p in parameters)
    steps["memory"] = _copying(count)
    seconds = interleaved_minima(steps, rounds=rounds)
    byte = seconds.pop("memory") / (16 * count)
    seconds["floor: 28 bytes a value"] = 28 * count * byte
    seconds["floor: 20 bytes a value"] = 20 * count * byte
    adam, sgd = seconds["torch Adam, fused"], seconds["torch SGD, fused"]
    peers = {
        "AvaGrad": seconds.get("pytorch_optimizer AvaGrad", math.nan),
        "AdaBound": seconds.get("pytorch_optimizer AdaBound", math.nan),
    }
    rows = []
    for name, best in seconds.items():
        peer = next((time / best for start, time in peers.items() if name.startswith(start)), None)
        rows.append(
            [
                name,
                f"{1e3 * best:.2f}",
                f"{1e9 * best / count:.2f}",
                f"{best / adam:.2f}",
                f"{best / sgd:.2f}",
                "" if peer is None else "not installed" if math.isnan(peer) else f"{peer:.1f}x",
            ]
        )
    header = ["step", "ms", "ns a value", "over Adam fused", "over SGD fused", "faster than peer"]
    print_table(f"One step, {len(parameters)} tensors, {count:,} values, float32", header, rows)
    print(
        "AdaBound stands at the floor: it reads and writes 28 bytes a value, and its ratio to the "
        "peer is what the peer costs over that."
    )


def _print_many_tensors(rounds: int) -> None:
    """Steps whose time goes into the calls, not into the numbers."""
    parameters = [Parameter(torch.zeros(16)) for _ in range(1000)]
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 1e-2)
    ours = ("AvaGrad", "DelayedAdam", "AdaBound", "AMSBound", "CSGD")
    chosen = {"torch Adam, fused", "torch SGD, fused", *ours, "AvaGrad, official"}
    optimizers = {name: make(parameters) for name, make in _candidates() if name in chosen}
    steps: dict[str, Callable[[], object]] = {n: o.step for n, o in optimizers.items()}
    seconds = interleaved_minima(steps, rounds=rounds, clock=time.process_time)
    adam, sgd = seconds["torch Adam, fused"], seconds["torch SGD, fused"]
    print_table(
        "One step, 1,000 tensors of 16 values, float32, CPU time",
        ["step", "us", "over Adam fused", "over SGD fused"],
        [[n, f"{1e6 * s:.0f}", f"{s / adam:.2f}", f"{s / sgd:.2f}"] for n, s in seconds.items()],
    )


def _candidates() -> Iterator[tuple[str, Callable[[list[Parameter]], torch.optim.Optimizer]]]:
    yield "torch Adam, fused", lambda p: torch.optim.Adam(p, lr=1e-5, fused=True)
    yield "torch Adam, foreach", lambda p: torch.optim.Adam(p, lr=1e-5, foreach=True)
    yield "torch SGD, fused", lambda p: torch.optim.SGD(p, lr=1e-5, momentum=0.9, fused=True)
    yield "torch SGD, foreach", lambda p: torch.optim.SGD(p, lr=1e-5, momentum=0.9, foreach=True)
    yield "AvaGrad", lambda p: AvaGrad(p, lr=1e-5)
    yield "AvaGrad, official", lambda p: AvaGrad(p, lr=1e-5, gamma_mode="official")
    yield "AvaGrad, plain torch", lambda p: AvaGrad(p, lr=1e-5, fused=False)
    yield "DelayedAdam", lambda p: DelayedAdam(p, lr=1e-5)
    yield "AdaBound", lambda p: AdaBound(p, lr=1e-5)
    yield "AMSBound", lambda p: AMSBound(p, lr=1e-5)
    yield "CSGD", lambda p: CSGD(p, lr=1e-5, momentum=0.9)
    if importlib.util.find_spec("pytorch_optimizer") is not None:
        from pytorch_optimizer import AdaBound as PeerAdaBound
        from pytorch_optimizer import AvaGrad as PeerAvaGrad

        yield "pytorch_optimizer AvaGrad", lambda p: PeerAvaGrad(p, lr=1e-5)
        yield "pytorch_optimizer AdaBound", lambda p: PeerAdaBound(p, lr=1e-5)


def _parameters() -> list[Parameter]:
    """Random parameters and gradients of a ResNet-34 for ImageNet: 110 tensors."""
    with torch.device("meta"):
        network = resnet34(num_classes=1000, stem="imagenet")
    generator = torch.Generator().manual_seed(0)
    parameters = []
    for weight in network.parameters():
        parameter = Parameter(0.05 * torch.randn(weight.shape, generator=generator))
        parameter.grad = 0.01 * torch.randn(weight.shape, generator=generator)
        parameters.append(parameter)
    return parameters


def _copying(count: int) -> Callable[[], object]:
    """a += b c over ``count`` values: 16 bytes each, and nothing but memory to wait for."""
    a, b, c = (torch.zeros(count) for _ in range(3))
    return lambda: a.addcmul_(b, c)


def _print_accuracy() -> None:
    rows = []
    for name, values in _moments():
        exact = _exact(values)
        sums = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            sums.append(float(rate_sums([values], [1.0], [0.1])[0]))
        gamma = math.sqrt(values.numel() / sums[0])
        naive = values.sqrt().add_(0.1).norm(-2).item() * math.sqrt(values.numel())
        rows.append(
            [
                name,
                f"{abs(gamma / math.sqrt(values.numel() / exact) - 1):.1e}",
                f"{abs(naive / math.sqrt(values.numel() / exact) - 1):.1e}",
                "yes" if sums[0] == sums[1] else "no",
            ]
        )
    print_table(
        "Relative error of gamma, 51,200,000 values, float32, eps 0.1",
        ["second moments", "AvaGrad", "tensor.norm(-2)", "same bits with 1 and 2 threads"],
        rows,
    )


def _moments() -> Iterator[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    yield "all 0.25", torch.full((51_200_000,), 0.25)
    yield "uniform", torch.rand(51_200_000, generator=generator)


def _exact(values: Tensor) -> float:
    chunks = values.split(1 << 20)
    return math.fsum(float((c.double().sqrt() + 0.1).pow(-2).sum()) for c in chunks)


def _print_memory() -> None:
    parameters = _parameters()
    rows = []
    for name, optimizer in (("AvaGrad", AvaGrad(parameters, lr=1e-5)),):
        optimizer.step()
        optimizer.step()
        before = _peak()
        for _ in range(3):
            optimizer.step()
        rows.append([name, f"{_peak() - before:.2f}"])
    print_table("Growth of the process's peak memory over further steps", ["step", "MB"], rows)


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
