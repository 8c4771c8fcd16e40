"""Times of candidates that take turns, so that drift hits all alike, and tables of them."""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from latewood.core.timing import least_times

__all__ = ["describe_machine", "interleaved_minima", "print_table"]


def interleaved_minima(
    candidates: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 15,
    turn_seconds: float = 2e-4,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """The least time of each candidate over turns that they take (``core.timing.least_times``).

    Args:
        candidates: what to time, by name; each call does one unit of work on the CPU.
        rounds: turns in a row without a candidate becoming faster, after which they end.
        turn_seconds: a turn repeats a candidate for about this long.
        clock: wall-clock time, or ``time.process_time`` for work on one thread beside others.

    Returns:
        Seconds by name.
    """
    times = least_times(
        candidates,
        torch.device("cpu"),
        steady=rounds,
        seconds=math.inf,
        turn_seconds=turn_seconds,
        clock=clock,
        inference=torch.is_inference_mode_enabled(),
    )
    return {name: 1e-6 * time for name, time in times.items()}


def describe_machine() -> str:
    """One line that says where a table was measured."""
    model = platform.processor() or platform.machine()
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        lines = listing.read_text(encoding="utf-8").splitlines()
        model = next(
            (x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), model
        )
    return (
        f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"torch {torch.__version__}, {torch.get_num_threads()} thread(s)"
    )


def print_table(title: str, header: list[str], rows: list[list[str]]) -> None:
    """Prints a Markdown table, ready for docs/benchmarks.md."""
    print(f"\n### {title}\n\n{describe_machine()}\n")
    widths = [max(len(r[i]) for r in [header, *rows]) for i in range(len(header))]
    for number, row in enumerate([header, *rows]):
        print("| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |")
        if number == 0:
            print("|" + "|".join("-" * (w + 2) for w in widths) + "|")
