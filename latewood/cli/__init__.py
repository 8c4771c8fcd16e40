"""The command line: reads arguments, hands them to the package, and turns errors into one line.

Nothing heavy is imported before a command runs, so that help and mistakes answer at once.
"""

from __future__ import annotations

import atexit
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from io import TextIOWrapper
from typing import NoReturn

from cyclopts import CycloptsError

# Importing a module of commands registers them with the application.
from latewood.cli import (  # noqa: F401
    connect_commands,
    faults_command,
    grow_commands,
    inspect_commands,
    pack_commands,
    precision_commands,
    regime_command,
    reproduce_command,
    slim_command,
    train_commands,
)
from latewood.cli.app import app
from latewood.errors import LatewoodError, RequestError

__all__ = ["app", "main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits: 0 success, 1 the work failed, 2 the request was wrong."""
    words = [*(sys.argv[1:] if arguments is None else arguments)]
    debug = "--debug" in words
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # A letter that the terminal lacks is no reason to fail.
            stream.reconfigure(errors="replace")
    if not debug:
        warnings.showwarning = _show_warning
    words = [word for word in words if word != "--debug"]
    try:
        code = _run(words, debug)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has gone; what is still buffered must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    if _is_one_of_several():
        _leave_at_once(code)
    raise SystemExit(code)


def _is_one_of_several() -> bool:
    return (os.environ.get("WORLD_SIZE") or "1") != "1"


def _leave_at_once(code: int) -> NoReturn:
    """Ends a launched process without the end of the interpreter.

    Wrapped models keep a group of processes alive after it was destroyed. A thread of its gloo
    backend that still lets go of a tensor then asks for the interpreter's lock while that ends,
    and torch aborts a process whose work is done and complete on disk.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _run(words: Sequence[str], debug: bool) -> int:
    try:
        app(words, exit_on_error=False, print_error=False, result_action="return_value")
        return 0
    except CycloptsError as error:
        error.verbose = False
        command = " ".join(["latewood", *(error.command_chain or ())])
        return _failed(f"{' '.join(str(error).split())} See {command} --help.", 2)
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        return _failed("stopped. A training run goes on with: latewood train --resume RUN", 1)
    except Exception as error:
        if debug:
            import traceback

            traceback.print_exc()
        return _explain(error, debug)


def _explain(error: Exception, debug: bool) -> int:
    if isinstance(error, RequestError):
        return _failed(str(error), 2)
    if isinstance(error, LatewoodError):
        return _failed(str(error), 1)
    hint = "" if debug else " (--debug shows where)"
    return _failed(f"unexpected {type(error).__name__}: {error}{hint}", 1)


def _show_warning(message: Warning | str, *rest: object, **more: object) -> None:
    _failed(f"warning: {message}", 0)


def _failed(message: str, code: int) -> int:
    print("latewood: " + " ".join(message.split()), file=sys.stderr)
    return code
