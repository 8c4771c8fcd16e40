"""The processes of one run: device, rank, and the few things that they do together."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.tracking import get_available_trackers
from torch import nn

from latewood.errors import (
    Interrupted,
    LatewoodError,
    RequestError,
    WorkError,
    invalid,
    listed,
)

__all__ = ["Processes", "alone", "launched_processes", "processes"]

T = TypeVar("T")

_STATES: tuple[Any, ...] = (PartialState, AcceleratorState, GradientState)


class Processes:
    """What one process knows of all of them; one process alone costs nothing.

    Args:
        accelerator: accelerate's view of devices and processes.
    """

    def __init__(self, accelerator: Any) -> None:
        self.accelerator = accelerator
        self.device: torch.device = accelerator.device
        self.rank: int = accelerator.process_index
        self.count: int = accelerator.num_processes
        self.is_main = self.rank == 0

    def autocast(self) -> AbstractContextManager[None]:
        """The context of the forward pass in the recipe's precision."""
        if self.accelerator.mixed_precision == "no":
            return nullcontext()
        context: AbstractContextManager[None] = self.accelerator.autocast()
        return context

    def _require_precision(self, model: nn.Module) -> None:
        """Names LSTMs under bf16 on processors for whose lack of it torch has only a raw error."""
        layers = [name for name, layer in model.named_modules() if isinstance(layer, nn.LSTM)]
        if not layers or self.device.type != "cpu" or self.accelerator.mixed_precision != "bf16":
            return
        try:
            with torch.random.fork_rng(devices=[]), self.autocast(), torch.no_grad():
                nn.LSTM(1, 1)(torch.zeros(1, 1, 1))
        except RuntimeError:
            raise invalid(
                "precision", "bf16", f"'no', as this processor has no bfloat16 for {listed(layers)}"
            ) from None

    @property
    def scaler(self) -> Any:
        """The gradient scaler of fp16; None otherwise."""
        return self.accelerator.scaler

    def distribute(self, model: nn.Module) -> nn.Module:
        """The model whose gradients are averaged over the processes.

        Raises:
            RequestError: layers that the device does not compute in the recipe's precision.
        """
        self._require_precision(model)
        if self.count == 1:
            return model
        ids = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=ids)

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sums over the processes, the same on all."""
        if self.count == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        summed: list[float] = total.tolist()
        return summed

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any process."""
        return flag if self.count == 1 else self.sum([float(flag)])[0] > 0

    def first(self, value: T | None) -> T | None:
        """The first value over the processes that is not None."""
        if self.count == 1:
            return value
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return next((item for item in values if item is not None), None)

    def share_buffers(self, model: nn.Module) -> None:
        """Gives all processes the main one's buffers: each has seen other batches."""
        if self.count > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)

    def on_main(self, work: Callable[[], T]) -> T:
        """Does rare work in the main process; its result, or its error, is that of all.

        Without this an error in one process would leave the others waiting for it.
        """
        if self.count == 1:
            return work()
        outcome: list[Any] = [None, None]
        failure: LatewoodError | None = None
        if self.is_main:
            try:
                outcome[1] = work()
            except LatewoodError as error:
                failure, outcome[0] = error, (type(error).__name__, str(error))
            except Exception as error:
                outcome[0] = ("WorkError", f"{type(error).__name__}: {error}")
                dist.broadcast_object_list(outcome, src=0)
                raise
        dist.broadcast_object_list(outcome, src=0)
        if failure is not None:
            raise failure
        if outcome[0] is not None:
            kinds = {kind.__name__: kind for kind in (RequestError, WorkError, Interrupted)}
            raise kinds.get(outcome[0][0], WorkError)(outcome[0][1])
        result: T = outcome[1]
        return result


def alone() -> Processes:
    """This process on the CPU in full precision, apart from any that a launcher started."""
    return Processes(
        SimpleNamespace(
            device=torch.device("cpu"),
            process_index=0,
            num_processes=1,
            mixed_precision="no",
            scaler=None,
        )
    )


def launched_processes() -> int:
    """Number of processes that a launcher started, as it says in the environment."""
    return int(os.environ.get("WORLD_SIZE", "1") or "1")


@contextmanager
def processes(
    *, device: str, precision: str, trackers: Sequence[str], folder: Path
) -> Iterator[Processes]:
    """Joins the processes that a launcher started; one process alone if none did.

    The processes on one machine share its cores. On the way out accelerate's global state is as it
    was. A process group made here stays open for the next run, as a launcher's processes can meet
    once only, and is closed when Python ends.

    Args:
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        precision: "no", "bf16" or "fp16".
        trackers: names of accelerate's trackers.
        folder: where trackers that write files put them.

    Raises:
        RequestError: a device, precision or tracker that this machine does not have.
    """
    _require_device(device)
    _require_trackers(trackers)
    before = [dict(state._shared_state) for state in _STATES]
    grouped = _is_grouped()
    with _device_wish(device):
        for state in _STATES:
            state._shared_state.clear()
        try:
            accelerator = Accelerator(
                # Without this several processes on a machine that has none but the CPU never meet.
                cpu=device == "cpu" or (device == "auto" and not torch.accelerator.is_available()),
                mixed_precision=precision,
                log_with=list(trackers) or None,
                project_dir=str(folder),
            )
            if precision == "fp16" and accelerator.device.type != "cuda":
                raise invalid("precision", precision, f"'no' or 'bf16' on {accelerator.device}")
            _share_cores()
            yield Processes(accelerator)
        finally:
            if not grouped and _is_grouped():
                atexit.register(_leave_group)
            for state, saved in zip(_STATES, before, strict=True):
                state._shared_state.clear()
                state._shared_state.update(saved)


def _is_grouped() -> bool:
    return dist.is_available() and dist.is_initialized()


def _leave_group() -> None:
    if _is_grouped():
        dist.destroy_process_group()


def _share_cores() -> None:
    """One process keeps the thread count it has; several on one machine divide its cores."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1") or "1")
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    threads = torch.get_num_threads() if local == 1 else cores // local
    torch.set_num_threads(max(1, min(threads, cores)))


def _require_device(device: str) -> None:
    if device.startswith("cuda"):
        index = int(device.partition(":")[2] or 0)
        if index >= torch.cuda.device_count():
            count = torch.cuda.device_count()
            raise invalid("device", device, f"'auto' or 'cpu'; {count} CUDA devices are visible")
    if device == "mps" and not torch.backends.mps.is_available():
        raise invalid("device", device, "'auto' or 'cpu'; there is no Metal device")


def _require_trackers(trackers: Sequence[str]) -> None:
    if trackers:
        available = sorted(str(name) for name in get_available_trackers())
        for index, name in enumerate(trackers):
            if name not in available:
                there = ", ".join(available) or "none"
                raise invalid(
                    f"trackers[{index}]", name, f"a tracker that is installed (there is {there})"
                )


@contextmanager
def _device_wish(device: str) -> Iterator[None]:
    """accelerate reads a particular device from the environment only."""
    name = "ACCELERATE_TORCH_DEVICE"
    before = os.environ.get(name)
    if device not in ("auto", "cpu"):
        os.environ[name] = device
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before
