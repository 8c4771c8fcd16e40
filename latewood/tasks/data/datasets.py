"""Data as tensors, and the one order in which every process, seed and resumed run reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, count, islice
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from latewood.errors import RequestError, invalid

__all__ = [
    "Batch",
    "Dataset",
    "Normalise",
    "TensorDataset",
    "batch_count",
    "batch_stream",
    "batches",
    "epoch_order",
    "stratified_prefix",
]

Batch = tuple[Tensor, ...]
"""Inputs first, targets last where there are targets; all stacked on dimension 0."""


@runtime_checkable
class Dataset(Protocol):
    """Samples that are read many at a time by their indices."""

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def gather(self, indices: Tensor) -> Batch:
        """The samples at ``indices`` (int64, n) as tensors of shape (n, ...)."""
        ...


class TensorDataset:
    """Samples held in memory, one tensor per field.

    Args:
        tensors: one tensor per field, each of shape (samples, ...), all of one length.
        transform: applied to every gathered batch, for example ``Normalise``.

    Raises:
        RequestError: no tensor, or tensors of different lengths.
    """

    def __init__(self, *tensors: Tensor, transform: Callable[[Batch], Batch] | None = None) -> None:
        lengths = [len(tensor) for tensor in tensors]
        if len(set(lengths)) != 1:
            raise invalid("tensors", lengths, "one or more tensors of one length")
        self.tensors = tensors
        self.transform = transform

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.tensors[0])

    def gather(self, indices: Tensor) -> Batch:
        """The samples at ``indices`` (int64, n) as tensors of shape (n, ...)."""
        batch = tuple(tensor.index_select(0, indices.to(tensor.device)) for tensor in self.tensors)
        return batch if self.transform is None else self.transform(batch)

    def subset(self, indices: Tensor) -> TensorDataset:
        """The samples at ``indices`` (int64, n) as a data set of their own."""
        return TensorDataset(
            *(tensor.index_select(0, indices) for tensor in self.tensors), transform=self.transform
        )


class Normalise:
    """Turns the first field from stored bytes to standardised floats, channel by channel.

    ``(bytes / 255 - mean) / std``

    Args:
        mean: one value per channel, in units of the full range (0 to 1).
        std: one positive value per channel, in the same units.

    Raises:
        RequestError: different numbers of channels, or a std that is not positive.
    """

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        if mean.shape != std.shape:
            raise invalid("std", std.tolist(), f"{len(mean)} values, as many as the mean has")
        if not bool((std > 0).all()):
            raise invalid("std", std.tolist(), "positive values")
        self.black = (-mean / std).float()
        self._scale = (1 / (255 * std)).float()

    def __call__(self, batch: Batch) -> Batch:
        """The batch with its first field (n, channels, ...) standardised as float32."""
        values, *rest = batch
        shape = (-1,) + (1,) * (values.dim() - 2)
        scale = self._scale.to(values.device).view(shape)
        shift = self.black.to(values.device).view(shape)
        return (values.to(torch.float32, copy=True).mul_(scale).add_(shift), *rest)


def batch_count(n: int, batch_size: int, drop_last: bool = False) -> int:
    """Number of batches in one epoch.

    Args:
        n: number of samples.
        batch_size: samples per batch over all processes together.
        drop_last: leave out a last batch that is not full.
    """
    return n // batch_size if drop_last else -(-n // batch_size)


def epoch_order(n: int, *, seed: int, epoch: int) -> Tensor:
    """The order of one epoch: a permutation that depends on the seed and the epoch only.

    Args:
        n: number of samples.
        seed: any integer that is not negative.
        epoch: number of the epoch, from 0.

    Returns:
        int64 indices of shape (n,).
    """
    # SeedSequence mixes both numbers, so that (0, 1) and (1, 0) are unrelated.
    mixed = int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0])
    return torch.randperm(n, generator=torch.Generator().manual_seed(mixed))


def batches(
    dataset: Dataset,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    shuffle: bool = True,
    rank: int = 0,
    world_size: int = 1,
    drop_last: bool = False,
    start: int = 0,
) -> Iterator[tuple[Batch, float]]:
    """One process's share of one epoch, batch by batch, each with its weight.

    The global order depends on (seed, epoch) only. Every global batch is cut into ``world_size``
    contiguous parts of nearly equal length, and each process gets its own. The mean over the
    processes of ``weight * local mean`` is the mean of the global batch:
    ``weight = local_n * world_size / global_n``. A process for which nothing is left in a batch
    gets one sample of it with weight 0, so that all processes take the same number of steps.

    Args:
        dataset: where the samples come from.
        batch_size: samples per batch over all processes together.
        seed: seed of the run.
        epoch: number of the epoch, from 0.
        shuffle: False keeps the stored order.
        rank: number of this process, from 0.
        world_size: number of processes.
        drop_last: leave out a last batch that is not full.
        start: number of batches to skip (those that an interrupted run has already taken).

    Returns:
        iterator over (batch, weight).

    Raises:
        RequestError: an empty data set, more processes than samples, or a value out of range.
    """
    n = len(dataset)
    if n == 0:
        raise RequestError("dataset: has no samples; expected at least one")
    if batch_size < 1:
        raise invalid("batch_size", batch_size, "1 or more")
    if seed < 0:
        raise invalid("seed", seed, "an integer that is not negative")
    if epoch < 0:
        raise invalid("epoch", epoch, "0 or more")
    if world_size < 1 or world_size > n:
        raise invalid("world_size", world_size, f"1 to {n} processes, one sample each at least")
    if not 0 <= rank < world_size:
        raise invalid("rank", rank, f"0 to {world_size - 1}")
    total = batch_count(n, batch_size, drop_last)
    if total == 0:
        raise invalid("batch_size", batch_size, f"at most the {n} samples, as drop_last is on")
    if not 0 <= start <= total:
        raise invalid("start", start, f"0 to {total}, the number of batches in an epoch")
    order = epoch_order(n, seed=seed, epoch=epoch) if shuffle else torch.arange(n)

    def generate() -> Iterator[tuple[Batch, float]]:
        for number in range(start, total):
            indices = order[number * batch_size : (number + 1) * batch_size]
            low = len(indices) * rank // world_size
            high = len(indices) * (rank + 1) // world_size
            weight = (high - low) * world_size / len(indices)
            local = indices[low:high] if high > low else indices[:1]
            yield dataset.gather(local), weight

    return generate()


def batch_stream(
    dataset: Dataset,
    *,
    batch_size: int,
    seed: int,
    steps: int,
    start: int = 0,
    drop_last: bool = False,
) -> Iterator[Batch]:
    """A number of batches, epoch after epoch in the seed's order, as a loop outside a run needs.

    Args:
        dataset: where the samples come from.
        batch_size: samples per batch.
        seed: of the order.
        steps: number of batches.
        start: number of batches to skip, those of whole epochs included.
        drop_last: leave out the last batch of an epoch if it is not full.

    Returns:
        iterator over batches.

    Raises:
        RequestError: an empty data set, or a number out of range.
    """
    if steps < 0:
        raise invalid("steps", steps, "0 or more")
    if start < 0:
        raise invalid("start", start, "0 or more")
    if batch_size < 1:
        raise invalid("batch_size", batch_size, "1 or more")
    read = partial(batches, dataset, batch_size=batch_size, seed=seed, drop_last=drop_last)
    per_epoch = batch_count(len(dataset), batch_size, drop_last)
    epoch, skipped = divmod(start, max(per_epoch, 1))
    # The first epoch is opened at once, so that what is wrong is refused here.
    first = read(epoch=epoch, start=skipped)
    later = (read(epoch=number) for number in count(epoch + 1))
    return islice((batch for order in chain([first], later) for batch, _ in order), steps)


def stratified_prefix(labels: Tensor, limit: int) -> Tensor:
    """The first samples of every class, in the proportions of the classes.

    A larger limit only adds samples to what a smaller one chose.

    Args:
        labels: int64 classes of shape (n,).
        limit: number of samples to choose, 1 to n.

    Returns:
        int64 indices of shape (limit,), ascending.

    Raises:
        RequestError: a limit out of range.
    """
    n = len(labels)
    if not 1 <= limit <= n:
        raise invalid("limit", limit, f"1 to {n}, the number of samples")
    position = torch.empty(n, dtype=torch.float64)
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        ranks = torch.arange(len(members), dtype=torch.float64)
        position[members] = (ranks + 0.5) / len(members)
    return position.argsort(stable=True)[:limit].sort().values
