"""Work beside the training, in order, in one thread, with a queue that is short and says so."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, Literal, TypeVar, get_args

from latewood.errors import invalid

__all__ = ["Background", "Policy"]

T = TypeVar("T")
Policy = Literal["block", "drop-oldest"]


class Background(Generic[T]):
    """Runs one piece of work after the other in a thread of its own.

    What was begun is also finished when Python ends; an error comes out of the call that asks for
    the result.

    Args:
        length: pieces that may be under way or wait at a time.
        policy: when there are that many, "block" waits for the first of them, "drop-oldest" gives
            up the oldest that has not begun, or the new one if all have.

    Raises:
        RequestError: a length below 1 or an unknown policy.
    """

    def __init__(self, length: int = 2, policy: Policy = "block") -> None:
        if not isinstance(length, int) or length < 1:
            raise invalid("queue", length, "an integer of at least 1")
        if policy not in get_args(Policy):
            raise invalid("policy", policy, " or ".join(f'"{each}"' for each in get_args(Policy)))
        self.length = length
        self.policy = policy
        self.dropped = 0
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
