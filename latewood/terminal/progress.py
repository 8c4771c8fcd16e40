"""Progress for people: a bar on a terminal, plain lines elsewhere, nothing if it is quick."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["Advance", "Track", "duration", "one_line_warnings", "progress", "track", "unseen"]

PATIENCE = 2.0
"""Seconds of silence before anything is shown."""

LINE_EVERY = 10.0
"""Seconds between two plain lines."""

Advance = Callable[..., None]
"""``advance(steps=1, note="")``: that many steps are done; the note is shown beside them."""

Track = Callable[[Iterable[Any], str, int], Iterator[Any]]
"""``track(items, title, total)``: yields the items and shows how many are done."""

T = TypeVar("T")


def unseen(steps: int = 1, note: str = "") -> None:
    """An ``Advance`` that shows nothing."""


@contextmanager
def progress(
    title: str,
    total: int,
    *,
    done: int = 0,
    show: bool | None = None,
    stream: TextIO | None = None,
) -> Iterator[Advance]:
    """Shows how far a piece of work is, on standard error.

    Args:
        title: what is being done.
        total: number of steps.
        done: number of steps done earlier, which say nothing about the pace.
        show: None shows it when the work takes longer than two seconds; False never.
        stream: where it is shown; standard error if None.

    Returns:
        A context manager that yields ``advance(steps=1, note="")``.
    """
    stream = stream or sys.stderr
    if show is False:
        yield unseen
        return
    kind = _Bar if stream.isatty() else _Lines
    view = kind(title, total, done, stream)
    try:
        yield view.advance
    finally:
        view.close()


def track(items: Iterable[T], title: str, total: int) -> Iterator[T]:
    """Yields the items and shows how many are done."""
    with progress(title, total) as advance:
        for item in items:
            yield item
            advance()


@contextmanager
def one_line_warnings(prefix: str) -> Iterator[None]:
    """Shows warnings as ``prefix: warning: message``, without the line of code that gave them."""

    def show(message: Warning | str, *rest: object, **more: object) -> None:
        print(f"{prefix}: warning: {' '.join(str(message).split())}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def duration(seconds: float) -> str:
    """Seconds as people write them: ``42 s``, ``3 min 05 s``, ``2 h 07 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class _Lines:
    """One line after two seconds, then one every ten, for logs and pipes."""

    def __init__(self, title: str, total: int, done: int, stream: TextIO) -> None:
        self._title, self._total, self._stream = title, total, stream
        self._before, self._done, self._note = done, done, ""
        self._start = time.monotonic()
        self._next = self._start + PATIENCE
        self._shown = -1

    def advance(self, steps: int = 1, note: str = "") -> None:
        self._done += steps
        self._note = note or self._note
        now = time.monotonic()
        if now >= self._next:
            self._next = now + LINE_EVERY
            self._write(now)

    def close(self) -> None:
        if self._shown >= 0 and self._shown != self._done:
            self._write(time.monotonic())

    def _write(self, now: float) -> None:
        elapsed = now - self._start
        now_done = self._done - self._before
        left = elapsed * (self._total - self._done) / now_done if now_done else float("nan")
        ahead = f", about {duration(left)} left" if 0 < left < float("inf") else ""
        note = f"  {self._note}" if self._note else ""
        line = f"{self._title}: {self._done}/{self._total}, {duration(elapsed)}{ahead}{note}\n"
        self._stream.write(line)
        self._stream.flush()
        self._shown = self._done


class _Bar:
    """A bar that appears after two seconds and stays when it is full."""

    def __init__(self, title: str, total: int, done: int, stream: TextIO) -> None:
        columns: list[Any] = [
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        ]
        self._progress = Progress(*columns, console=Console(file=stream), refresh_per_second=4)
        self._task = self._progress.add_task(title, total=total, completed=done, note="")
        self._show_at = time.monotonic() + PATIENCE

    def advance(self, steps: int = 1, note: str = "") -> None:
        self._progress.update(self._task, advance=steps)
        if note:
            self._progress.update(self._task, note=note)
        if not self._progress.live.is_started and time.monotonic() >= self._show_at:
            self._progress.start()

    def close(self) -> None:
        if self._progress.live.is_started:
            self._progress.stop()
