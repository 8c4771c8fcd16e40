"""Matrices dealt out to the processes of a distributed training, and their results put together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch.distributed as dist

from latewood.errors import RequestError, WorkError

__all__ = ["Shards"]

T = TypeVar("T")


class Shards:
    """The part of one process among all; rank r has the items r, r + world, ...

    Args:
        wanted: whether to share at all; all processes must then ask at the same steps.

    Raises:
        RequestError: wanted, but this torch cannot.
    """

    def __init__(self, *, wanted: bool) -> None:
        if wanted and not dist.is_available():
            raise RequestError("shard: got True; expected False, as this torch has no distributed")
        self.wanted = wanted

    @property
    def active(self) -> bool:
        """Whether there are several processes to share between."""
        return self.wanted and dist.is_initialized() and dist.get_world_size() > 1

    @property
    def first(self) -> bool:
        """Whether this process has the results in the end."""
        return not self.active or dist.get_rank() == 0

    def assigned(self, index: int) -> bool:
        """Whether the item of an index is this process's."""
        return not self.active or index % dist.get_world_size() == dist.get_rank()

    def agreed(self, decision: bool) -> bool:
        """The first process's decision, in all of them."""
        if not self.active:
            return decision
        decisions = [decision]
        dist.broadcast_object_list(decisions, src=0)
        return decisions[0]

    def gathered(self, work: Callable[[], Sequence[T]]) -> list[T]:
        """All processes' results, in the order of the items they were dealt from.

        Args:
            work: gives this process's results.

        Returns:
            Those of all.

        Raises:
            WorkError: the work failed in another process.
        """
        if not self.active:
            return list(work())
        failure: Exception | None = None
        # The message of a failure, and the results.
        outcome: tuple[str, Sequence[T]] = ("", ())
        try:
            outcome = ("", work())
        except Exception as error:  # the others must hear of it rather than wait
            failure, outcome = error, (f"{type(error).__name__}: {error}", ())
        outcomes: list[tuple[str, Sequence[T]]] = [outcome] * dist.get_world_size()
        dist.all_gather_object(outcomes, outcome)
        if failure is not None:
            raise failure
        for rank, (message, _) in enumerate(outcomes):
            if message:
                raise WorkError(f"spectral probe: failed in process {rank}: {message}")
        longest = max(len(results) for _, results in outcomes)
        return [
            results[turn]
            for turn in range(longest)
            for _, results in outcomes
            if turn < len(results)
        ]
