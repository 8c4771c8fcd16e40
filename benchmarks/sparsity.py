"""Continuous sparsification's step over the plain step, and its kernel over the memory's speed."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks._timing import interleaved_minima, print_table
from latewood.core import parameter_groups
from latewood.kernels.dispatch import native
from latewood.kernels.masked_weight import mask_sum, masked_weight
from latewood.models import resnet20
from latewood.sparsity import ContinuousSparsification

__all__ = ["main"]

BATCH = 128
FORMS = ("native", "reference")
RESNET_20, BEYOND_CACHE = 270_000, 1 << 22


def main(arguments: list[str]) -> None:
    """Prints the step's table for one and two threads, then the kernel's.

    Args:
        arguments: the number of rounds each candidate is timed, 12 if left out.
    """
    rounds = int(arguments[0]) if arguments else 12
    if native() is None:
        print("the compiled kernels are not built: 'native' below is the reference")
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        _print_steps(rounds)
        _print_parts(10 * rounds)
        _print_kernels(10 * rounds)
    torch.set_num_threads(before)
    os.environ["LATEWOOD_KERNELS"] = "native"


def _print_steps(rounds: int) -> None:
    candidates = {"plain SGD": _step(None)}
    candidates |= {f"continuous sparsification, {form}": _step(form) for form in FORMS}
    seconds = interleaved_minima(candidates, rounds=rounds)
    plain = seconds["plain SGD"]
    print_table(
        f"One training step, ResNet-20, batch {BATCH}, 32x32 images",
        ["step", "milliseconds", "over plain"],
        [[name, f"{1e3 * best:.1f}", f"{best / plain:.3f}"] for name, best in seconds.items()],
    )


def _print_parts(rounds: int) -> None:
    """What the method adds, without the convolutions whose noise is larger than it."""
    candidates = {}
    for form in FORMS:
        model = resnet20(num_classes=10)
        plain = torch.optim.SGD(_with_gradients(model), lr=0.0, momentum=0.9, nesterov=True)
        method = ContinuousSparsification(model, total_steps=1000)
        both = torch.optim.SGD(_with_gradients(model), lr=0.0, momentum=0.9, nesterov=True)
        layers = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
        gradients = [torch.randn_like(layer.weight) for layer in layers]

        def masks(layers: list[nn.Conv2d] = layers, gradients: list[Tensor] = gradients) -> None:
            torch.autograd.backward([layer.weight for layer in layers], gradients)

        def penalty(method: ContinuousSparsification = method) -> None:
            method.penalty().backward()

        parts: dict[str, Callable[[], object]] = {
            "masks": masks,
            "penalty": penalty,
            "optimizer": both.step,
            "plain optimizer": plain.step,
        }
        for name, run in parts.items():
            candidates[f"{name}, {form}"] = partial(_with_form, form, run)
    best = interleaved_minima(candidates, rounds=rounds)
    rows = []
    for form in FORMS:
        added = [best[f"masks, {form}"], best[f"penalty, {form}"]]
        added.append(best[f"optimizer, {form}"] - best[f"plain optimizer, {form}"])
        rows.append([form, *(f"{1e3 * part:.2f}" for part in (*added, sum(added)))])
    print_table(
        "What continuous sparsification adds to one step of ResNet-20, milliseconds",
        ["kernels", "masks, both ways", "penalty, both ways", "optimizer, more", "sum"],
        rows,
    )


def _with_gradients(model: nn.Module) -> list[nn.Parameter]:
    parameters = list(model.parameters())
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    return parameters


def _with_form(form: str, run: Callable[[], object]) -> None:
    os.environ["LATEWOOD_KERNELS"] = form
    run()


def _step(form: str | None) -> Callable[[], None]:
    """One step on its own network: plain without a form, else with these kernels."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, 32, 32, generator=generator)
    labels = torch.randint(10, (BATCH,), generator=generator)
    model = resnet20(num_classes=10)
    methods = [] if form is None else [ContinuousSparsification(model, total_steps=1000)]
    optimizer = torch.optim.SGD(
        parameter_groups(model, methods, weight_decay=1e-4), lr=0.1, momentum=0.9, nesterov=True
    )

    def step() -> None:
        loss = F.cross_entropy(model(images), labels)
        for method in methods:
            loss = loss + method.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for method in methods:
            method.step()

    return partial(_with_form, form or "native", step)


def _print_kernels(rounds: int) -> None:
    rows = []
    for n in (RESNET_20, BEYOND_CACHE):
        add = partial(torch.add, torch.ones(n), torch.ones(n), out=torch.ones(n))
        candidates: dict[str, Callable[[], object]] = {"add": add}
        for form in FORMS:
            for part, run in _parts(n, form).items():
                candidates[f"{part}, {form}"] = run
        best = interleaved_minima(candidates, rounds=rounds)
        # An addition moves three floats an entry, as fast as this memory (or cache) allows.
        floats = {"forward": 3, "backward": 5, "sum": 1}
        for part, moved in floats.items():
            roofline = best["add"] * moved / 3
            ours, theirs = (best[f"{part}, {form}"] for form in FORMS)
            rows.append(
                [
                    f"{part}, {n} entries",
                    f"{1e6 * ours:.0f}",
                    f"{1e6 * theirs:.0f}",
                    f"{theirs / ours:.2f}",
                    f"{ours / roofline:.2f}",
                ]
            )
    print_table(
        "The masked weight alone",
        ["kernel", "native, us", "reference, us", "reference / native", "native / memory"],
        rows,
    )


def _parts(n: int, form: str) -> dict[str, Callable[[], object]]:
    os.environ["LATEWOOD_KERNELS"] = form
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(n, generator=generator))
    logits = nn.Parameter(0.1 * torch.randn(n, generator=generator))
    temperature, gradient = torch.tensor(20.0), torch.randn(n, generator=generator)
    output = masked_weight(weight, logits, temperature, 2.0)
    forward = partial(masked_weight, weight.detach(), logits.detach(), temperature, 2.0)
    backward = partial(torch.autograd.grad, output, (weight, logits), gradient, retain_graph=True)
    total = partial(mask_sum, logits.detach(), temperature, 2.0)
    parts: dict[str, Callable[[], object]] = {
        "forward": forward,
        "backward": backward,
        "sum": total,
    }
    return {name: partial(_with_form, form, run) for name, run in parts.items()}
