"""What one training step spends: feeding CIFAR-shaped batches, memory formats, compilation."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks._timing import interleaved_minima, print_table
from latewood.models import convnet, resnet20
from latewood.tasks import Batch, Normalise, TensorDataset, batches
from latewood.tasks.data.augmentation import CropAndFlip

__all__ = ["main"]

BATCH = 128


def main(arguments: list[str]) -> None:
    """Prints the time of feeding one batch, and of one step in each form, on one thread.

    Args:
        arguments: the number of rounds, 15 if left out; then "compile" to compile as well, which
            takes a minute more.
    """
    rounds = int(arguments[0]) if arguments else 15
    compiled = "compile" in arguments
    torch.set_num_threads(1)
    for name, model, shape in (
        ("resnet20", resnet20, (3, 32, 32)),
        ("convnet", convnet, (1, 8, 8)),
    ):
        torch.manual_seed(0)
        batch = (torch.randn(BATCH, *shape), torch.randint(10, (BATCH,)))
        candidates: dict[str, Callable[[], object]] = {
            "plain": _step(model(), batch),
            "channels-last": _step(model(), batch, channels_last=True),
        }
        if compiled:
            candidates["compiled"] = _step(model(), batch, compiled=True)
            candidates["both"] = _step(model(), batch, channels_last=True, compiled=True)
        if name == "resnet20":
            candidates["feeding alone"] = _feeding()
        best = interleaved_minima(candidates, rounds=rounds)
        rows = [
            [form, f"{1e3 * seconds:.2f}", f"{best['plain'] / seconds:.2f}"]
            for form, seconds in best.items()
        ]
        print_table(f"One step of {name}, batch {BATCH}", ["form", "ms", "plain over it"], rows)


def _step(
    model: nn.Module, batch: Batch, *, channels_last: bool = False, compiled: bool = False
) -> Callable[[], object]:
    inputs, targets = batch
    if channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    network: Callable[[Tensor], Tensor] = torch.compile(model) if compiled else model

    def run() -> None:
        loss = F.cross_entropy(network(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return run


def _feeding() -> Callable[[], object]:
    """Shuffling, gathering, normalising, cropping and flipping one batch of stored bytes."""
    noise = torch.Generator().manual_seed(0)
    images = torch.randint(256, (50_000, 3, 32, 32), generator=noise, dtype=torch.uint8)
    normalise = Normalise(torch.tensor([0.49, 0.48, 0.45]), torch.tensor([0.25, 0.24, 0.26]))
    data = TensorDataset(images, torch.zeros(50_000, dtype=torch.int64), transform=normalise)
    augment = CropAndFlip(fill=normalise.black)

    def endless() -> Iterator[Batch]:
        epoch = 0
        while True:
            for batch, _ in batches(data, batch_size=BATCH, seed=0, epoch=epoch):
                yield augment(batch, noise)
            epoch += 1

    feed = endless()
    return lambda: next(feed)
