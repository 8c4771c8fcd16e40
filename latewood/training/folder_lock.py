"""One writer at a time for a folder: a lock that dies with its process."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import threading
import time
import uuid
import warnings
import weakref
from pathlib import Path
from types import TracebackType
from typing import Any

from latewood.errors import RequestError, WorkError

__all__ = ["LOCK", "FolderLock", "holds_nothing"]

LOCK = ".lock"
"""The lock's file; it is there while somebody writes to the folder, or was killed doing so."""

BEAT_SECONDS = 5.0
"""The holder renews its lock this often, for those on other machines to see."""

STALE_SECONDS = 30.0
"""A lock of another machine that was not renewed for so long is taken over."""

_UNSUPPORTED = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}
_held: weakref.WeakSet[FolderLock] = weakref.WeakSet()


class FolderLock:
    """The right to write to a folder, which one process has at a time.

    On one machine the operating system keeps the lock, and frees it when its process dies. Across
    machines, whose file systems may keep locks apart, its age decides: the holder renews the file
    every ``BEAT_SECONDS``, and a lock that was not renewed for ``STALE_SECONDS`` is taken over. A
    holder that lost its lock in this way, as it was suspended for example, learns so from
    ``check``.

    Args:
        folder: it is made if it is missing, and removed again if nothing was written to it.
        argument: what errors call the folder.
    """

    def __init__(self, folder: Path, argument: str = "folder") -> None:
        self.folder = folder
        self.path = folder / LOCK
        self._argument = argument
        self._descriptor: int | None = None
        self._token = ""
        self._renewed = 0.0
        self._lost = False
        self._stop: threading.Event | None = None
        self._made: list[Path] = []

    def __enter__(self) -> FolderLock:
        """Acquires the lock."""
        self.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Releases the lock."""
        self.release()

    def acquire(self) -> None:
        """Takes the lock; waits only for one that a dead process of another machine has left.

        Raises:
            RequestError: another process has it, or the folder cannot be written to.
        """
        if self._descriptor is not None:
            raise RequestError(self._refusal(self._read()))
        try:
            self._make_folder()
            self._descriptor = self._locked_file()
        except OSError as error:
            self._remove_made()
            raise RequestError(
                f"{self._argument}: got '{self.folder}', which cannot be written to "
                f"({error.strerror}); expected one that can"
            ) from error
        except BaseException:
            self._remove_made()
            raise
        _held.add(self)
        self._lost, self._renewed = False, time.time()
        self._stop = threading.Event()
        beat = threading.Thread(target=self._renew_until, args=(self._stop,), daemon=True)
        beat.start()

    def release(self) -> None:
        """Gives the lock back, if it is held; the file goes with it."""
        if self._descriptor is None or self._stop is None:
            return
        self._stop.set()
        _held.discard(self)
        if self._is_mine():
            # Before it is unlocked: whoever opened this file meanwhile sees that it is gone.
            with contextlib.suppress(OSError):
                self.path.unlink()
        os.close(self._descriptor)
        self._descriptor = self._stop = None
        self._remove_made()

    def check(self) -> None:
        """Makes sure that a lock that was acquired is still there; else it does nothing.

        Raises:
            WorkError: another process has taken it over.
        """
        if self._descriptor is None:
            return
        if not self._lost and time.time() - self._renewed > STALE_SECONDS / 2:
            self._renew()
        if self._lost:
            raise WorkError(
                f"{self.folder}: this process did not answer for a while, and "
                f"{_words(self._read())} writes here now; this one has stopped writing"
            )

    def _make_folder(self) -> None:
        missing: list[Path] = []
        folder = self.folder
        while not folder.exists():
            missing.append(folder)
            folder = folder.parent
        self._made = []
        for folder in reversed(missing):
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
                self._made.insert(0, folder)

    def _remove_made(self) -> None:
        for folder in self._made:
            with contextlib.suppress(OSError):  # something was written to it
                folder.rmdir()
        self._made = []

    def _locked_file(self) -> int:
        """A descriptor of the lock's file, with this process's record in it."""
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                locked = _lock(descriptor)
                if locked is False:
                    raise RequestError(self._refusal(self._read()))
                if self._is_in_place(descriptor):
                    earlier = self._read()
                    watched = locked and (earlier or {}).get("machine", _machine()) == _machine()
                    if not watched:
                        self._outlive(earlier)
                    self._write(descriptor)
                    if not watched:
                        # Two may have waited for the same lock: the last to write has it.
                        time.sleep(STALE_SECONDS / 30)
                        if not self._is_mine():
                            raise RequestError(self._refusal(self._read()))
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            # The last holder has removed the file between our opening and locking it.
            os.close(descriptor)

    def _is_in_place(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), self.path.stat())
        except FileNotFoundError:
            return False

    def _outlive(self, record: dict[str, Any] | None) -> None:
        """Waits until a lock that the system does not watch is stale; refuses one that is alive."""
        if record is None:  # just made, by this process or by one that was killed at once
            return
        renewed = self.path.stat().st_mtime_ns
        if self._age() < STALE_SECONDS:
            warnings.warn(
                f"{self.folder}: waiting to see whether {_words(record)} still writes here, for "
                f"{STALE_SECONDS:.0f} seconds at most",
                stacklevel=5,
            )
        while self._age() < STALE_SECONDS:
            time.sleep(min(0.5, STALE_SECONDS / 10))
            if not self.path.exists():
                return
            if self.path.stat().st_mtime_ns != renewed:
                raise RequestError(self._refusal(self._read()))

    def _age(self) -> float:
        """Seconds since the lock was renewed, by the clock of the file system, not of machines."""
        probe = self.path.with_name(f".{uuid.uuid4().hex}.tmp")
        probe.touch()
        try:
            return max(0.0, probe.stat().st_mtime - self.path.stat().st_mtime)
        finally:
            probe.unlink(missing_ok=True)

    def _write(self, descriptor: int) -> None:
        self._token = uuid.uuid4().hex
        record = {
            "process": os.getpid(),
            "host": socket.gethostname(),
            "machine": _machine(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
            "token": self._token,
        }
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(record).encode(), 0)
        os.fsync(descriptor)

    def _read(self) -> dict[str, Any] | None:
        try:
            record = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None
        return record if isinstance(record, dict) else None

    def _is_mine(self) -> bool:
        return (self._read() or {}).get("token") == self._token

    def _renew_until(self, stop: threading.Event) -> None:
        while not stop.wait(BEAT_SECONDS):
            self._renew()

    def _renew(self) -> None:
        record = self._read()
        if record is None:  # out of reach, or removed by hand: looked at again at the next beat
            return
        if record.get("token") != self._token:
            self._lost = True
            return
        with contextlib.suppress(OSError):
            os.utime(self.path)
            self._renewed = time.time()

    def _refusal(self, record: dict[str, Any] | None) -> str:
        return (
            f"{self._argument}: got '{self.folder}', which {_words(record)} is writing to; "
            "expected a folder that nobody writes to: wait until that one has ended, or stop it"
        )

    def _forget(self) -> None:
        """In a forked child: the lock is the parent's, and must not outlive it in here."""
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = self._stop = None
        self._made = []


def holds_nothing(folder: Path) -> bool:
    """Whether a folder is empty but for a lock.

    Raises:
        OSError: it cannot be read.
    """
    return all(entry.name == LOCK for entry in folder.iterdir())


def _lock(descriptor: int) -> bool | None:
    """Whether the system gave this process the file; None where it keeps no locks."""
    try:
        import fcntl
    except ImportError:  # not on this system: the age of the lock decides alone
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return None
        raise
    return True


def _machine() -> str:
    """What tells machines apart whose locks may be apart: the running kernel, else the name."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return socket.gethostname()


def _words(record: dict[str, Any] | None) -> str:
    if record is None:
        return "another process"
    return f"process {record.get('process')} on {record.get('host')} (since {record.get('since')})"


def _forget_all() -> None:
    for lock in list(_held):
        lock._forget()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
