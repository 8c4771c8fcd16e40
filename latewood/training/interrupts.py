"""Stopping between two steps: Ctrl-C and termination are noted, and acted on when it is safe."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Interrupts", "interrupts"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Whether the user has asked the run to stop."""

    def __init__(self) -> None:
        self.requested = False


@contextmanager
def interrupts() -> Iterator[Interrupts]:
    """Notes the first SIGINT or SIGTERM; the second acts as it did before.

    The caller's handlers come back at the end. Outside the main thread nothing can be, or needs to
    be, handled.
    """
    noted = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    # A handler that Python did not install reads as None and cannot be put back.
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in _SIGNALS}

    def note(number: int, frame: FrameType | None) -> None:
        noted.requested = True
        for handled in _SIGNALS:
            signal.signal(handled, before[handled])

    for number in _SIGNALS:
        signal.signal(number, note)
    try:
        yield noted
    finally:
        for number in _SIGNALS:
            signal.signal(number, before[number])
