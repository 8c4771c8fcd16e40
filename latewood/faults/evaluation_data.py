"""Labelled batches for an evaluation, and the accuracy on them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

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
        inputs, labels = batch[0].to(device), batch[1].to(device)
        output = model(inputs)
        output = getattr(output, "logits", output)
        if not isinstance(output, Tensor) or output.dim() < 2:
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            expected = "a model that gives (n, classes); or pass score="
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


def digest_of(tensors: Iterable[Any]) -> str:
    """A fingerprint of tensors, and of nothing else in the lists and tuples they stand in."""
    fingerprint = hashlib.sha256()

    def add(part: Any) -> None:
        if isinstance(part, Tensor):
            flat = part.detach().cpu().contiguous().reshape(-1)
            fingerprint.update(f"{part.dtype}{tuple(part.shape)}".encode())
            if flat.numel():
                fingerprint.update(flat.view(torch.uint8).numpy().tobytes())
        elif isinstance(part, dict):
            for value in part.values():
                add(value)
        elif isinstance(part, list | tuple):
            for value in part:
                add(value)

    for tensor in tensors:
        add(tensor)
    return fingerprint.hexdigest()[:16]
