"""What a pickle would do, read from its instructions without running them."""

from __future__ import annotations

import io
import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final

__all__ = ["is_whole", "sized_calls"]

_MARK: Final = pickletools.markobject
_PUT: Final = ("PUT", "BINPUT", "LONG_BINPUT")
_GET: Final = ("GET", "BINGET", "LONG_BINGET")
_CALLS: Final = ("REDUCE", "NEWOBJ")
_AT_MOST: Final = 4
"""Pickles that a file begins with, where it is no archive: three about it, then its content."""

_SIZED: Final = ("bytearray", "Tensor", "Storage")
"""Ends of names that make something as large as their argument says."""


def is_whole(path: Path) -> bool:
    """Whether a file of ``torch.save`` holds an undamaged pickle."""
    try:
        with _programs(path) as programs:
            for _ in pickletools.genops(programs):
                pass
    except (OSError, StopIteration, ValueError, zipfile.BadZipFile):
        return False
    return True


def sized_calls(path: Path) -> Iterator[str]:
    """Names of what a pickle calls that allocates as much as it is told, whatever the file holds.

    ``torch.save`` never writes such a call: it builds tensors on storages that lie in the file.
    """
    try:
        with _programs(path) as programs:
            for _ in range(_AT_MOST):
                if programs.read(1):
                    programs.seek(-1, io.SEEK_CUR)
                    yield from (name for name in _called(programs) if name.endswith(_SIZED))
    except (OSError, StopIteration, ValueError, IndexError, KeyError, zipfile.BadZipFile):
        return  # damaged: the reader says so


def _programs(path: Path) -> IO[bytes]:
    if not zipfile.is_zipfile(path):
        return path.open("rb")
    with zipfile.ZipFile(path) as archive:
        name = next(member for member in archive.namelist() if member.endswith("data.pkl"))
        return io.BytesIO(archive.read(name))


def _called(program: IO[bytes]) -> Iterator[str]:
    """Follows the names of globals over the stack and the memo, as ``pickletools.dis`` does."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for opcode, argument, _ in pickletools.genops(program):
        name = opcode.name
        if name in _CALLS and isinstance(stack[-2], str):
            yield stack[-2]
        if name in _PUT or name == "MEMOIZE":
            memo[len(memo) if name == "MEMOIZE" else int(str(argument))] = stack[-1]
            continue
        before = len(opcode.stack_before)
        if _MARK in opcode.stack_before or (name == "POP" and stack and stack[-1] is _MARK):
            while stack.pop() is not _MARK:
                pass
            before = opcode.stack_before.index(_MARK) if _MARK in opcode.stack_before else 0
        popped = stack[len(stack) - before :]
        del stack[len(stack) - before :]
        if name == "GLOBAL":
            stack.append(str(argument).replace(" ", "."))
        elif name == "STACK_GLOBAL":
            stack.append(".".join(str(part) for part in popped))
        elif name in _GET:
            stack.append(memo[int(str(argument))])
        elif name == "DUP":
            stack += [popped[0], popped[0]]
        elif isinstance(argument, str) and len(opcode.stack_after) == 1:
            stack.append(argument)
        else:
            stack += [_MARK if item is _MARK else None for item in opcode.stack_after]
