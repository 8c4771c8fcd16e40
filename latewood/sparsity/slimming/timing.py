"""Times of forms of one computation, taken in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final

import torch

__all__ = ["least_times"]

_ROUNDS: Final = (5, 15)
_WARM_UP: Final = 1
_SECONDS: Final = 0.5
"""About how long all turns of all forms take, if the fewest rounds are not longer."""
_TURN_SECONDS: Final = 2e-4
"""A turn repeats a form for about this long: with one short call, what another form left in the
cache would be counted."""
_MOST_CALLS: Final = 50


def least_times(
    forms: Mapping[str, Callable[[], object]], device: torch.device
) -> dict[str, float]:
    """The least time of a call of each form, over turns that they take one after the other.

    Args:
        forms: what to time, by name.
        device: where they run; work on an accelerator is waited for.

    Returns:
        Microseconds by name.
    """

    # On one thread its own time counts, which other work on the machine hardly disturbs.
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.thread_time if alone else time.perf_counter

    def turn(run: Callable[[], object], calls: int) -> float:
        _wait(device)
        start = clock()
        for _ in range(calls):
            run()
        _wait(device)
        return (clock() - start) / calls

    best = dict.fromkeys(forms, float("inf"))
    with torch.inference_mode():
        # The first call of each only warms up: memory, and the choice of a kernel.
        first = {name: (turn(run, 1), turn(run, 1))[1] for name, run in forms.items()}
        calls = {
            name: max(1, min(_MOST_CALLS, int(_TURN_SECONDS / max(seconds, 1e-9))))
            for name, seconds in first.items()
        }
        once = sum(calls[name] * seconds for name, seconds in first.items())
        rounds = max(_ROUNDS[0], min(_ROUNDS[1], int(_SECONDS / max(once, 1e-9))))
        for number in range(_WARM_UP + rounds):
            for name, run in forms.items():
                seconds = turn(run, calls[name])
                if number >= _WARM_UP:
                    best[name] = min(best[name], seconds)
    return {name: 1e6 * seconds for name, seconds in best.items()}


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
