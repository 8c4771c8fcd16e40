"""Batch-norm statistics measured anew, after the weights in front of them have changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from latewood.core.modes import evaluated
from latewood.errors import invalid

__all__ = ["recalibrate_batch_norm"]

Batch = tuple[Tensor, ...]


def recalibrate_batch_norm(
    model: nn.Module,
    batches: Iterable[Batch],
    forward: Callable[[nn.Module, Batch], object] | None = None,
) -> int:
    """Replaces the running statistics of all batch norms by their mean over some batches.

    mean = (1/B) sum_b mean_b and var = (1/B) sum_b var_b, each batch counting the same. Only the
    batch norms run in training mode, nothing records a gradient, and every module's mode and
    momentum is restored. If it fails half-way the old statistics come back.

    Args:
        model: any module; one without batch norms is left alone and the batches stay unread.
        batches: tuples of tensors, inputs first; the same sizes make the mean exact.
        forward: how to run the model on a batch; by default ``model(batch[0])``.

    Returns:
        The number of batch-norm layers measured.

    Raises:
        RequestError: there was no batch.
    """
    layers = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
    ]
    if not layers:
        return 0
    momenta = [layer.momentum for layer in layers]
    before = [[buffer.clone() for buffer in layer.buffers()] for layer in layers]
    measured = False
    try:
        with evaluated(model), torch.no_grad():
            for layer in layers:
                layer.train()
                layer.momentum = None
                layer.reset_running_stats()
            seen = 0
            for batch in batches:
                if forward is None:
                    model(batch[0])
                else:
                    forward(model, batch)
                seen += 1
        if seen == 0:
            raise invalid("batches", "no batch", "at least one batch to measure")
        measured = True
    finally:
        for layer, momentum, buffers in zip(layers, momenta, before, strict=True):
            layer.momentum = momentum
            if not measured:
                for buffer, value in zip(layer.buffers(), buffers, strict=True):
                    buffer.copy_(value)
    return len(layers)
