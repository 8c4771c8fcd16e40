"""The setting of small spectral experiments: scikit-learn's digits, perceptrons, seconds a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latewood.core.schedules import Schedule, constant, progress
from latewood.models import mlp
from latewood.tasks import Batch, TensorDataset, batch_count, batch_stream
from latewood.training.fit import fit

__all__ = ["Digits", "fit_part", "load", "network", "scores", "steps_per_epoch"]

TRAINING = 1400
SPLIT_SEED = 7
LABEL_SEED = 12345


@dataclass(frozen=True)
class Digits:
    """The 1,797 digits, 1,400 to train and 397 to validate.

    Args:
        train: inputs (1400, 64), one mean and deviation over all digits, and labels (1400,).
        validation: the other 397.
    """

    train: TensorDataset
    validation: TensorDataset


def load(*, random_labels: bool = False) -> Digits:
    """The digits, shuffled once and for all.

    Args:
        random_labels: permute the labels of all digits, before the split, by one fixed permutation.
    """
    from sklearn.datasets import load_digits

    bundled = load_digits()
    inputs = torch.tensor(bundled.data, dtype=torch.float32)
    labels = torch.tensor(bundled.target, dtype=torch.int64)
    inputs = (inputs - inputs.mean()) / inputs.std()
    if random_labels:
        labels = labels[_permutation(len(labels), LABEL_SEED)]
    order = _permutation(len(labels), SPLIT_SEED)
    chosen, held_out = order[:TRAINING], order[TRAINING:]
    return Digits(
        TensorDataset(inputs[chosen], labels[chosen]),
        TensorDataset(inputs[held_out], labels[held_out]),
    )


def network(hidden: Sequence[int] = (128, 128, 128), *, seed: int) -> nn.Sequential:
    """A fresh perceptron 64-...-10 with ReLU; torch's generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return mlp(in_features=64, hidden=tuple(hidden), num_classes=10)


def steps_per_epoch(data: Digits, batch_size: int) -> int:
    """Number of batches in one pass over the training part."""
    return batch_count(len(data.train), batch_size)


def fit_part(
    model: nn.Module,
    data: Digits,
    optimizer: torch.optim.Optimizer,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    schedule: Schedule | None = None,
    start: int = 0,
    stop: int | None = None,
    observe: Callable[[int], None] | None = None,
) -> None:
    """Trains a model from step ``start`` up to step ``stop`` of a run of so many epochs.

    A run cut in two, with the model and the optimizer as they were, ends as an uncut one.

    Args:
        model: from inputs (n, 64) to logits (n, 10).
        data: what to train on.
        optimizer: of the model's parameters; the rate of its groups at the beginning is the peak.
        epochs: length of the whole run, for the schedule.
        batch_size: samples per step.
        seed: of the order of the data.
        schedule: factor on the learning rates by progress; constant if None.
        start: steps taken before.
        stop: steps taken after; all if None.
        observe: called with the number of steps taken, after ``start`` and after each step.
    """
    schedule = schedule or constant()
    total = epochs * steps_per_epoch(data, batch_size)
    stop = total if stop is None else stop
    if observe is not None:
        observe(start)
    fit(
        model,
        batch_stream(data.train, batch_size=batch_size, seed=seed, start=start, steps=stop - start),
        _cross_entropy,
        optimizer,
        rate_factor=lambda taken: schedule(progress(start + taken, total)),
        after_step=None if observe is None else lambda taken: observe(start + taken),
    )


def _cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    inputs, labels = batch
    return F.cross_entropy(model(inputs), labels)


@torch.no_grad()
def scores(model: nn.Module, part: TensorDataset) -> dict[str, float]:
    """Mean cross-entropy "loss" and the share "error" of wrong answers on a part of the data."""
    inputs, labels = part.tensors
    logits: Tensor = model(inputs)
    wrong = (logits.argmax(1) != labels).double().mean()
    return {"loss": F.cross_entropy(logits.double(), labels).item(), "error": wrong.item()}


def _permutation(count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))
