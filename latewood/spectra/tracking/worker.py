"""Work beside the training, in order, in one thread, with a queue that is short and says so."""

from __future__ import annotations

import copy
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar, get_args

import torch
from torch import nn

from latewood.errors import invalid

__all__ = ["QueuePolicy", "Worker", "WorkerSettings"]

T = TypeVar("T")
QueuePolicy = Literal["block", "drop-oldest"]


@dataclass(frozen=True)
class WorkerSettings:
    """Where the linear algebra of a probe is done.

    Args:
        worker: whether a thread beside the training does it; "auto" does so where it is cheaper:
            with weights on a GPU, or cores that torch's threads leave free.
        queue: observations that may be under way or wait; the one that makes room for another is
            returned.
        policy: what happens to an observation that finds the queue full: "block" waits for the
            first of them, "drop-oldest" gives up the oldest that has not begun, or the new one if
            all have.
        threads: of the linear algebra; None for 1 in a worker, as many as torch has otherwise.

    Raises:
        RequestError: a value that is not allowed.
    """

    worker: bool | Literal["auto"] = False
    queue: int = 1
    policy: QueuePolicy = "block"
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.worker not in (True, False, "auto"):
            raise invalid("worker", self.worker, 'True, False or "auto"')
        if not isinstance(self.queue, int) or self.queue < 1:
            raise invalid("queue", self.queue, "an integer of at least 1")
        if self.policy not in get_args(QueuePolicy):
            allowed = " or ".join(f'"{policy}"' for policy in get_args(QueuePolicy))
            raise invalid("policy", self.policy, allowed)
        if self.threads is not None and self.threads < 1:
            raise invalid("threads", self.threads, "an integer of at least 1, or None")

    def beside(self, model: nn.Module) -> bool:
        """Whether a thread beside the training of a model does the work, as things are now."""
        if self.worker != "auto":
            return self.worker
        if any(parameter.device.type != "cpu" for parameter in model.parameters()):
            return True
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        # The processes of one machine share its cores.
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1") or "1")
        return cores > processes * torch.get_num_threads()

    def thread_count(self, *, beside: bool) -> int:
        """Threads of the linear algebra, beside the training or in its place."""
        return self.threads or (1 if beside else torch.get_num_threads())


class Worker(Generic[T]):
    """Runs one piece of work after the other in a thread of its own.

    What was begun is also finished when Python ends; an error comes out of the call that asks for
    the result.

    Args:
        settings: the length of the queue, and what happens where it is full.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        self.length = settings.queue
        self.policy = settings.policy
        self.dropped = 0
        """Pieces given up because the queue was full."""
        self._pool: ThreadPoolExecutor | None = None
        self._futures: deque[Future[T]] = deque()

    @property
    def pending(self) -> int:
        """Pieces whose results nobody has taken."""
        return len(self._futures)

    def submit(self, work: Callable[[], T]) -> None:
        """Adds a piece of work."""
        if not self._room():
            self.dropped += 1
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="latewood-spectra")
        self._futures.append(self._pool.submit(work))

    def ready(self, *, wait: bool = False) -> bool:
        """Whether there is a result to take.

        Args:
            wait: whether any that is under way will do.
        """
        return bool(self._futures) and (wait or self._futures[0].done())

    def take(self) -> T:
        """The oldest result that nobody has taken; waits for it.

        Raises:
            Exception: what the work has raised.
        """
        return self._futures.popleft().result()

    def settle(self) -> None:
        """Waits until nothing is under way; the results stay to be taken."""
        wait_for(self._futures)

    def __deepcopy__(self, memo: dict[int, Any]) -> Worker[T]:
        """A worker with a thread of its own, in which results that nobody has taken are too."""
        self.settle()
        copied = copy.copy(self)
        copied._pool = None
        copied._futures = deque(_copied(future, memo) for future in self._futures)
        return copied

    def _room(self) -> bool:
        unfinished = [future for future in self._futures if not future.done()]
        if len(unfinished) < self.length:
            return True
        if self.policy == "block":
            unfinished[0].exception()
            return True
        for future in unfinished:
            if future.cancel():
                self._futures.remove(future)
                self.dropped += 1
                return True
        return False


def _copied(future: Future[T], memo: dict[int, Any]) -> Future[T]:
    copied: Future[T] = Future()
    error = future.exception()
    if error is None:
        copied.set_result(copy.deepcopy(future.result(), memo))
    else:
        copied.set_exception(error)
    return copied
