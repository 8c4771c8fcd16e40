"""The matrices of a model at one moment, as copies where the training must not wait for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from latewood.spectra.tracking.resolved_matrices import ObservedView
from latewood.spectra.tracking.shards import Shards

__all__ = ["MatrixSample", "sample_matrices", "wait_for_devices"]


@dataclass(frozen=True)
class MatrixSample:
    """One matrix as it was at a step.

    Args:
        name: what it is called.
        matrix: (out, in), or (batch, out, in).
        dtype: of the weight as it is stored, "bfloat16" say.
        in_snapshot: whether its spectrum goes into the snapshot; others only serve alignments.
    """

    name: str
    matrix: Tensor
    dtype: str
    in_snapshot: bool = True


def sample_matrices(
    views: Iterable[ObservedView], shards: Shards, *, copy: bool
) -> tuple[list[MatrixSample], Callable[[], None]]:
    """Reads the matrices that are this process's.

    Args:
        views: those of all processes.
        shards: deals them out.
        copy: whether the training may change the weights before the samples are used.

    Returns:
        The samples, and what to call before they are used.
    """
    assigned: list[ObservedView] = []
    matrices: list[Tensor] = []
    for index, observed in enumerate(views):
        # Read by all, since a sharded weight is gathered from all; one matrix at a time.
        matrix = observed.view.read()
        if shards.assigned(index):
            assigned.append(observed)
            matrices.append(matrix)
    copies, ready = _host_copies(matrices) if copy else (matrices, _nothing)
    samples = [
        MatrixSample(
            observed.view.name,
            matrix,
            str(observed.view.dtype).removeprefix("torch."),
            observed.in_snapshot,
        )
        for observed, matrix in zip(assigned, copies, strict=True)
    ]
    return samples, ready


def wait_for_devices(model: nn.Module) -> None:
    """Lets the training step that is still under way end, whose time is not the probe's."""
    for device in {parameter.device for parameter in model.parameters()}:
        if device.type == "cuda":
            torch.cuda.synchronize(device)


def _host_copies(matrices: Sequence[Tensor]) -> tuple[list[Tensor], Callable[[], None]]:
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


def _nothing() -> None:
    """There is nothing to wait for."""
