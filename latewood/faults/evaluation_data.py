"""Labelled batches for an evaluation, and the accuracy on them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from latewood.core.devices import device_of
from latewood.errors import RequestError, invalid, require_count

__all__ = ["accuracy", "batches_of", "digest_of"]

Batch = Any


def batches_of(data: object, batch_size: int) -> list[Batch]:
    """The batches of some data, to go through more than once.

    Args:
        data: a pair of tensors (inputs, labels), or an iterable of batches.
        batch_size: samples of a batch, where tensors are given.

    Raises:
        RequestError: data of another kind, without samples, or of unlike lengths.
    """
    require_count("batch_size", batch_size)
    expected = "a pair of tensors (inputs, labels), or an iterable of batches"
    if isinstance(data, Tensor) or not isinstance(data, Iterable):
        raise RequestError(f"data: got {type(data).__name__}; expected {expected}")
    parts = list(data)
    if len(parts) == 2 and all(isinstance(part, Tensor) for part in parts):
        inputs, labels = parts
        if inputs.dim() == 0 or labels.dim() == 0 or len(inputs) != len(labels):
            shapes = tuple(inputs.shape), tuple(labels.shape)
            raise invalid("data", shapes, "inputs and labels of as many samples")
        parts = [
            batch
            for batch in zip(inputs.split(batch_size), labels.split(batch_size), strict=True)
            if len(batch[0])
        ]
    if not parts:
        raise invalid("data", "no samples", "at least one sample to evaluate on")
    return parts


def accuracy(model: nn.Module, batches: Sequence[Batch]) -> float:
    """The share of samples whose label has the largest output.

    Args:
        model: gives (n, classes) or (n, classes, ...), or an object with such ``logits``.
        batches: (inputs, labels) each, the labels integers of shape (n,) or (n, ...).

    Returns:
        A number in [0, 1].

    Raises:
        RequestError: batches of another kind, or outputs that do not fit the labels.
    """
    right = total = 0
    device = device_of(model)
    for batch in batches:
        if not isinstance(batch, Sequence) or len(batch) < 2:
            kind = type(batch).__name__
            raise invalid("data", f"a batch that is a {kind}", "(inputs, labels); or pass score=")
        if not all(isinstance(part, Tensor) for part in batch[:2]):
            kinds = " and ".join(type(part).__name__ for part in batch[:2])
            raise invalid("data", f"a batch of {kinds}", "tensors (inputs, labels); or pass score=")
        inputs, labels = batch[0].to(device), batch[1].to(device)
        output = model(inputs)
        output = getattr(output, "logits", output)
        # Of one output the first is always the largest.
        if not isinstance(output, Tensor) or output.dim() < 2 or output.shape[1] < 2:
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            expected = "a model that gives (n, classes), 2 or more; or pass score="
            raise invalid("model", f"outputs of {shape}", expected)
        predicted = output.argmax(1)
        if predicted.shape != labels.shape or labels.is_floating_point():
            given = f"{labels.dtype} of shape {tuple(labels.shape)}"
            raise invalid("data, labels", given, f"integers of shape {tuple(predicted.shape)}")
        right += int((predicted == labels).sum())
        total += labels.numel()
    if total == 0:
        raise invalid("data", "no samples", "at least one sample to evaluate on")
    return right / total


def digest_of(value: object) -> str:
    """A fingerprint of tensors, arrays and plain values, and of the containers they stand in.

    Args:
        value: any of these; of other objects their class and attributes count.
    """
    fingerprint = hashlib.sha256()
    above: list[int] = []

    def add(part: Any) -> None:
        # Where one part ends and the next begins counts, so every part says what it is.
        kind = "list" if isinstance(part, tuple) else type(part).__qualname__
        fingerprint.update(f"({kind}{getattr(part, '__qualname__', '')}".encode())
        if isinstance(part, Tensor):
            add_tensor(part)
        elif isinstance(part, numpy.ndarray | numpy.generic) and part.dtype != object:
            fingerprint.update(f"{part.dtype}{part.shape}".encode())
            fingerprint.update(part.tobytes())
        elif part is None or isinstance(part, str | bytes | int | float | complex | Enum):
            fingerprint.update(repr(part).encode())
        elif id(part) not in above:
            above.append(id(part))
            if isinstance(part, Mapping):
                for key, inner in part.items():
                    add(key)
                    add(inner)
            elif isinstance(part, Iterable) and not isinstance(part, Iterator):
                for inner in part:
                    add(inner)
            else:
                add(getattr(part, "__dict__", None))
            above.pop()
        fingerprint.update(b")")

    def add_tensor(tensor: Tensor) -> None:
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        fingerprint.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        if flat.numel():
            fingerprint.update(flat.view(torch.uint8).numpy().tobytes())

    add(value)
    return fingerprint.hexdigest()[:16]
