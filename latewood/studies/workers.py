"""Calls in processes of their own, on this machine or a cluster; one whose process dies runs again.

Every worker is a pool of its own, so that a process that dies takes no other call with it.
"""

from __future__ import annotations

import os
import re
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, ClassVar, Literal, Protocol, TypeVar

from joblib.externals.loky import ProcessPoolExecutor

from latewood.errors import LatewoodError, RequestError, WorkError, invalid

__all__ = ["Backend", "completed", "require_backend"]

Backend = Literal["loky", "ray", "dask"]

T = TypeVar("T")
Call = tuple[Any, ...]

IDLE_SECONDS = 300
"""A process that has nothing to do waits for the next calls, and ends after this time."""

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class _Workers(Protocol):
    """Places where calls run, by number."""

    def submit(self, place: int, function: Callable[..., T], call: Call) -> Future[T]:
        """Starts a call at a place that is free."""

    def replace(self, place: int) -> None:
        """Makes a place usable again whose process has died."""


def require_backend(backend: str) -> None:
    """Checks that a backend exists and is installed.

    Raises:
        RequestError: it does not, or is not.
    """
    module = {"loky": "joblib", "ray": "ray", "dask": "distributed"}.get(backend)
    if module is None:
        raise invalid("backend", backend, "one of 'loky', 'ray', 'dask'")
    if find_spec(module) is None:
        raise RequestError(
            f"backend: got {backend!r}, which is not installed; expected: "
            f"pip install 'latewood[{backend}]'"
        )


def completed(
    function: Callable[..., T],
    calls: Sequence[Call],
    *,
    jobs: int,
    backend: Backend = "loky",
    threads: int = 1,
) -> Iterator[tuple[int, T | WorkError]]:
    """Yields the number and the result of every call, in the order in which they end.

    A call whose process dies (killed for its memory, or by a crash) is made once more; what dies
    again has a ``WorkError`` for a result, and the others go on.

    Args:
        function: what is called, found by its name in the workers.
        calls: the arguments of each call.
        jobs: how many at the same time.
        backend: what runs them.
        threads: that a worker of this machine loads its libraries with.

    Raises:
        LatewoodError: what the function raised, a ``WorkError`` for any other error; the calls
            under way are stopped.
    """
    waiting = deque((number, 1) for number in range(len(calls)))
    free = list(range(min(jobs, len(calls))))
    running: dict[Future[T], tuple[int, int, int]] = {}
    with _workers(backend, jobs, threads) as workers:
        while waiting or running:
            while waiting and free:
                (number, attempt), place = waiting.popleft(), free.pop()
                future = workers.submit(place, _guarded, (function, *calls[number]))
                running[future] = number, attempt, place
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                number, attempt, place = running.pop(future)
                free.append(place)
                try:
                    result: T | WorkError = future.result()
                except LatewoodError:
                    raise
                except Exception as error:
                    workers.replace(place)
                    if attempt == 1:
                        warnings.warn(f"a process died ({_reason(error)}); once more", stacklevel=2)
                        waiting.appendleft((number, 2))
                        continue
                    result = WorkError(f"its process died twice ({_reason(error)})")
                yield number, result


def _guarded(function: Callable[..., T], *call: Any) -> T:
    """In the worker: whatever the function raises is its own, and no process that died."""
    try:
        return function(*call)
    except LatewoodError:
        raise
    except Exception as error:
        raise WorkError(f"{type(error).__name__}: {error}") from error


@contextmanager
def _workers(backend: Backend, jobs: int, threads: int) -> Iterator[_Workers]:
    if backend == "loky":
        local = _Local(threads)
        try:
            yield local
            local.keep()
        finally:
            local.kill()
    elif backend == "ray":
        import ray

        started = not ray.is_initialized()
        if started and "RAY_ADDRESS" in os.environ:
            ray.init()
        elif started:
            # Of this machine's processes, and without the page that nobody opens.
            ray.init(num_cpus=jobs, include_dashboard=False)
        try:
            yield _Ray()
        finally:
            if started:
                ray.shutdown()
    else:
        from distributed import Client

        named = "DASK_SCHEDULER_ADDRESS" in os.environ
        own = {"n_workers": jobs, "threads_per_worker": 1, "dashboard_address": None}
        with Client(**({} if named else own)) as client:
            yield _Dask(client)


class _Local:
    """A process for every place, made when it is needed, or left by earlier calls."""

    _idle: ClassVar[dict[int, list[Executor]]] = {}

    def __init__(self, threads: int) -> None:
        self._pools: dict[int, Executor] = {}
        self._left = self._idle.setdefault(threads, [])
        # The limit also reaches what a worker loads before it can set its own.
        self._environment = dict.fromkeys(_THREADS, str(threads))

    def submit(self, place: int, function: Callable[..., T], call: Call) -> Future[T]:
        if place not in self._pools:
            self._pools[place] = self._left.pop() if self._left else self._new()
        try:
            return self._pools[place].submit(function, *call)
        except BrokenExecutor:  # it died while it had nothing to do
            self._pools[place] = self._new()
            return self._pools[place].submit(function, *call)

    def replace(self, place: int) -> None:
        self._pools.pop(place).shutdown(wait=False)

    def _new(self) -> Executor:
        pool: Executor = ProcessPoolExecutor(1, timeout=IDLE_SECONDS, env=self._environment)
        return pool

    def keep(self) -> None:
        """Leaves the processes to later calls."""
        self._left.extend(self._pools.values())
        self._pools.clear()

    def kill(self) -> None:
        """Ends the processes, whatever they do."""
        for pool in self._pools.values():
            pool.shutdown(wait=True, kill_workers=True)  # type: ignore[call-arg]
        self._pools.clear()


class _Ray:
    """Tasks of Ray; it finds another place for the next."""

    def submit(self, place: int, function: Callable[..., T], call: Call) -> Future[T]:
        import ray

        task = ray.remote(num_cpus=1, max_retries=0)(function)
        future: Future[T] = task.remote(*call).future()
        return future

    def replace(self, place: int) -> None:
        pass


class _Dask:
    """Tasks of Dask; it finds another place for the next."""

    def __init__(self, client: Any) -> None:
        self._executor = client.get_executor(pure=False)

    def submit(self, place: int, function: Callable[..., T], call: Call) -> Future[T]:
        future: Future[T] = self._executor.submit(function, *call)
        return future

    def replace(self, place: int) -> None:
        pass


def _reason(error: Exception) -> str:
    codes = re.search(r"exit codes of the workers are \{(.*)\}", str(error))
    if codes:
        return f"{codes[1]}; SIGKILL often means too little memory"
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
