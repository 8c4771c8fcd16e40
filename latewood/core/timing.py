"""Times of forms of one computation, taken in turns: the least ones, and typical ones."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Final

import torch

__all__ = ["least_times", "typical_times", "usual_clock"]

_FEWEST: Final = 4
_BETTER: Final = 0.99
"""A form that takes less than this fraction of its least time until then has become faster."""
_MOST_CALLS: Final = 50


def least_times(
    forms: Mapping[str, Callable[[], object]],
    device: torch.device,
    *,
    steady: int = 8,
    seconds: float = 0.5,
    turn_seconds: float = 2e-4,
    clock: Callable[[], float] | None = None,
    inference: bool = True,
) -> dict[str, float]:
    """The least time of a call of each form, over turns that they take one after the other.

    The turns go on until the least times stay as they are, which takes longer beside other work.

    Args:
        forms: what to time, by name.
        device: where they run; work on an accelerator is waited for.
        steady: turns in a row without a form becoming faster, after which they end.
        seconds: stop after about this long, but not before each had four turns.
        turn_seconds: a turn repeats a form for about this long, in up to 50 calls: with one short
            call, what another form left in the cache would be counted.
        clock: such as ``time.process_time``; None for the elapsed time, or on one thread of the
            CPU that thread's own, which other work on the machine disturbs less.
        inference: whether the forms run in torch's inference mode; False for training steps.

    Returns:
        Microseconds by name.
    """
    turn = _turn(device, clock)
    best = dict.fromkeys(forms, float("inf"))
    with torch.inference_mode(inference):
        calls = _calls(forms, turn, turn_seconds)
        turns = since = 0
        end = time.monotonic() + seconds
        while since < steady and (turns < _FEWEST or time.monotonic() < end):
            since += 1
            for name, run in forms.items():
                spent = turn(run, calls[name])
                if spent < _BETTER * best[name]:
                    since = 0
                best[name] = min(best[name], spent)
            turns += 1
    return {name: 1e6 * least for name, least in best.items()}


def typical_times(
    forms: Mapping[str, Callable[[], object]],
    device: torch.device,
    *,
    seconds: float = 0.5,
    turn_seconds: float = 2e-4,
    clock: Callable[[], float] | None = None,
    inference: bool = True,
    report: Callable[[float], object] | None = None,
) -> dict[str, float]:
    """The median time of a call of each form, over turns that they take one after the other.

    What many calls will take on this machine with the other work that is on it.

    Args:
        forms: what to time, by name.
        device: where they run; work on an accelerator is waited for.
        seconds: stop after about this long, but not before each had four turns.
        turn_seconds: as for ``least_times``.
        clock: as for ``least_times``.
        inference: as for ``least_times``.
        report: called after each round of turns with the share of the time that is over, up to 1.

    Returns:
        Microseconds by name.
    """
    turn = _turn(device, clock)
    taken: dict[str, list[float]] = {name: [] for name in forms}
    with torch.inference_mode(inference):
        calls = _calls(forms, turn, turn_seconds)
        start = time.monotonic()
        end = start + seconds
        turns = 0
        while turns < _FEWEST or time.monotonic() < end:
            for name, run in forms.items():
                taken[name].append(turn(run, calls[name]))
            turns += 1
            if report is not None:
                spent = (time.monotonic() - start) / max(seconds, 1e-9)
                report(min(1.0, spent, turns / _FEWEST))
    return {name: 1e6 * statistics.median(times) for name, times in taken.items()}


def usual_clock(device: torch.device) -> Callable[[], float]:
    """The elapsed time, or on one thread of the CPU that thread's own.

    Other work on the machine disturbs that less.

    Args:
        device: where the work runs.
    """
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    return time.thread_time if alone else time.perf_counter


def _turn(
    device: torch.device, clock: Callable[[], float] | None
) -> Callable[[Callable[[], object], int], float]:
    """What times some calls of a form, on average."""
    now = usual_clock(device) if clock is None else clock

    def turn(run: Callable[[], object], calls: int) -> float:
        _wait(device)
        start = now()
        for _ in range(calls):
            run()
        _wait(device)
        return (now() - start) / calls

    return turn


def _calls(
    forms: Mapping[str, Callable[[], object]],
    turn: Callable[[Callable[[], object], int], float],
    turn_seconds: float,
) -> dict[str, int]:
    """Calls of each form in a turn. The first call of each only warms up: memory, and kernels."""
    once = {name: (turn(run, 1), turn(run, 1))[1] for name, run in forms.items()}
    return {
        name: max(1, min(_MOST_CALLS, int(turn_seconds / max(spent, 1e-9))))
        for name, spent in once.items()
    }


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
