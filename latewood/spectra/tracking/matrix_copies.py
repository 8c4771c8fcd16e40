"""Copies of a model's matrices that the training cannot change any more."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["copied"]


def copied(matrices: Sequence[Tensor]) -> tuple[list[Tensor], Callable[[], None]]:
    """Copies matrices to the host's memory, from a GPU on a stream beside that of the training.

    The training goes on; only its next work on the GPU waits until the weights have been read.

    Args:
        matrices: on any devices.

    Returns:
        The copies, and what to call before they are read.
    """
    events: dict[torch.device, torch.cuda.Event] = {}
    streams: dict[torch.device, torch.cuda.Stream] = {}
    copies: list[Tensor] = []
    for matrix in matrices:
        device = matrix.device
        if device.type != "cuda":
            copies.append(matrix.detach().to("cpu", copy=True))
            continue
        if device not in streams:
            streams[device] = torch.cuda.Stream(device)
            streams[device].wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(streams[device]):
            host = torch.empty_strided(
                matrix.shape, matrix.stride(), dtype=matrix.dtype, pin_memory=True
            )
            copies.append(host.copy_(matrix.detach(), non_blocking=True))
            matrix.record_stream(streams[device])
    for device, stream in streams.items():
        events[device] = stream.record_event()
        torch.cuda.current_stream(device).wait_event(events[device])

    def ready() -> None:
        for event in events.values():
            event.synchronize()

    return copies, ready
