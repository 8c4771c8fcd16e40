"""Python processes that start warm: forks of one that has imported torch and the package.

Importing them is most of what a short process costs. What a fork runs is a program as ``python``
would run it, with arguments, environment, folder and streams of its own. Where the start itself is
what a test looks at (what is imported, what a library reads from the environment as it loads, how
the interpreter ends), the test starts ``sys.executable``.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import traceback
import types
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["WarmPython", "run", "run_ranks"]

_FORKS = multiprocessing.get_context("forkserver")
# Nothing of it starts a thread, draws a number or reads what a program may set.
_FORKS.set_forkserver_preload(
    [
        *("torch", "torch._dynamo", "torch.distributed", "sklearn.datasets", "latewood.cli"),
        *(f"latewood.{room}" for room in ("growth", "models", "optim", "precision", "report")),
        *(f"latewood.{room}" for room in ("segmentation", "slim", "sparsity", "spectra")),
        *(f"latewood.{room}" for room in ("studies", "tasks", "training.run")),
    ]
)


class WarmPython:
    """A running program, as ``subprocess.Popen`` has it; its streams are read when it has ended.

    Args:
        words: what follows ``python`` on a command line: "-m" and a module, "-c" and code, or the
            path of a script; then the arguments.
        cwd: folder to run in.
        env: the whole environment.
    """

    def __init__(
        self,
        words: Sequence[str],
        *,
        cwd: Path | str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.args = [*map(str, words)]
        self._streams = tempfile.TemporaryDirectory()
        self._output, self._errors = (Path(self._streams.name, name) for name in ("out", "err"))
        folder = os.path.abspath(cwd or os.getcwd())  # noqa: PTH100, PTH109
        given = self.args, folder, dict(env or os.environ), str(self._output), str(self._errors)
        self._process = _FORKS.Process(target=_become, args=given)
        self._process.start()

    @property
    def returncode(self) -> int | None:
        """The exit code; minus the signal that ended it; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """As ``returncode``."""
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Sends it a signal, if it still runs."""
        if self.poll() is None and self._process.pid is not None:
            os.kill(self._process.pid, number)

    def kill(self) -> None:
        """Ends it at once."""
        self._process.kill()

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it printed, and what it printed on standard error, once it has ended."""
        self._process.join(timeout)
        if self.poll() is None:
            self.kill()
            self._process.join()
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0, *self._printed())
        return self._printed()

    def _printed(self) -> tuple[str, str]:
        paths = (self._output, self._errors)
        one, two = (path.read_text() if path.exists() else "" for path in paths)
        return one, two


def run(
    words: Sequence[str],
    *,
    cwd: Path | str | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 300,
) -> subprocess.CompletedProcess[str]:
    """Runs a program to its end, as ``subprocess.run`` with captured text does.

    Args:
        words: as ``WarmPython`` takes them.
        cwd: likewise.
        env: likewise.
        timeout: seconds after which it is ended, and the test with it.
    """
    process = WarmPython(words, cwd=cwd, env=env)
    output, errors = process.communicate(timeout)
    assert process.returncode is not None
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def run_ranks(
    words: Sequence[str],
    count: int,
    *,
    cwd: Path | str | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 240,
) -> list[subprocess.CompletedProcess[str]]:
    """Runs the processes of a distributed program, as a launcher starts them on one machine.

    Args:
        words: as ``WarmPython`` takes them, the same for all.
        count: of processes.
        cwd: likewise.
        env: what they have beside the launcher's variables.
        timeout: seconds for each after which the test ends.

    Returns:
        How each ended, by rank.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        **(env or os.environ),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
    }
    processes = [
        WarmPython(words, cwd=cwd, env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(count)
    ]
    printed = [process.communicate(timeout) for process in processes]
    return [
        subprocess.CompletedProcess(process.args, process.returncode or 0, *streams)
        for process, streams in zip(processes, printed, strict=True)
    ]


def _become(
    words: list[str], folder: str, environment: dict[str, str], output: str, errors: str
) -> None:
    for number, path in ((1, output), (2, errors)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(file, number)
        os.close(file)
    # New objects, as an interpreter makes them: those of the parent know its terminal.
    sys.stdout, sys.stderr = (open(n, "w", closefd=False) for n in (1, 2))  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    # Its instruction set is chosen once, by the environment.
    assert "latewood.kernels._native" not in sys.modules
    if threads := environment.get("OMP_NUM_THREADS"):
        import torch

        torch.set_num_threads(int(threads))
    try:
        _run(words, folder)
    except SystemExit:
        raise
    except BaseException:
        traceback.print_exc()
        raise SystemExit(1) from None
    finally:
        # A fork ends without them.
        atexit._run_exitfuncs()


def _run(words: list[str], folder: str) -> None:
    first, *rest = words
    if first == "-c":
        code, *rest = rest
        sys.argv, sys.path = ["-c", *rest], [folder, *sys.path]
        main = types.ModuleType("__main__")
        sys.modules["__main__"] = main
        exec(compile(code, "<string>", "exec"), vars(main))
    elif first == "-m":
        module, *rest = rest
        sys.argv, sys.path = [module, *rest], [folder, *sys.path]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path = words, [str(Path(first).resolve().parent), *sys.path]
        runpy.run_path(first, run_name="__main__")
