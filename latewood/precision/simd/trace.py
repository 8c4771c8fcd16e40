"""Traces: every instruction with its operands as a line of text, to test hardware against."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TextIO

import numpy as np

from latewood.errors import WorkError, invalid
from latewood.precision.simd.machine import Machine
from latewood.precision.simd.register_format import register_bytes, register_number

__all__ = ["TRACE_HEADER", "TraceWriter", "read_trace", "replay"]

TRACE_HEADER: Final = "# latewood machine trace 1"
"""First line of a trace; the number rises when the form of the lines changes."""

_EXPLANATION: Final = """\
# one instruction a line: its name, then key=value in a fixed order
# registers (a b mask value value0 value1): 32 hexadecimal digits, bit 127 first
# numbers (before after number): decimal, 32 bits in two's complement; all others: decimal
# acc va vb vd vs vm: which register; slot: of the pattern table; pattern: index of its pattern
# before, after: the accumulator before and after the instruction
"""

_REGISTERS: Final = frozenset({"a", "b", "mask", "value", "value0", "value1"})


class TraceWriter:
    """Writes the instructions of a machine to a file: ``Machine(..., record=writer)``.

    A context manager. The file appears when the work is done; a failure leaves none behind.

    Args:
        path: of the file; an older one is replaced.

    Raises:
        WorkError: it cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.lines = 0
        """Instructions written so far."""
        self._part = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        self._file: TextIO | None = None

    def __enter__(self) -> TraceWriter:
        if self.path.is_dir():
            raise invalid("trace", str(self.path), "a file")
        try:
            self._file = self._part.open("w", encoding="ascii")
        except OSError as error:
            raise WorkError(f"{self.path}: cannot be written: {error.strerror or error}") from error
        self._file.write(f"{TRACE_HEADER}\n{_EXPLANATION}")
        return self

    def __call__(self, instruction: str, /, **operands: Any) -> None:
        """Writes one instruction."""
        if self._file is None:
            raise WorkError(f"{self.path}: the trace is not open")
        words = [
            f"{name}={register_number(value):032x}" if name in _REGISTERS else f"{name}={value}"
            for name, value in operands.items()
        ]
        try:
            self._file.write(" ".join([instruction, *words]) + "\n")
        except OSError as error:
            raise WorkError(f"{self.path}: cannot be written: {error.strerror or error}") from error
        self.lines += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._file is not None
        try:
            self._file.close()
            if kind is None:
                self._part.replace(self.path)
        except OSError as problem:
            reason = problem.strerror or problem
            raise WorkError(f"{self.path}: cannot be written: {reason}") from problem
        finally:
            self._file = None
            self._part.unlink(missing_ok=True)


def read_trace(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The instructions of a trace, in order.

    Args:
        path: of a file that ``TraceWriter`` wrote.

    Yields:
        The instruction and its operands: numbers, and registers as (16,) bytes.

    Raises:
        WorkError: the file cannot be read, or is no trace of this form.
    """
    try:
        with Path(path).open(encoding="ascii") as file:
            first = file.readline().rstrip("\n")
            if first != TRACE_HEADER:
                raise WorkError(f"{path}: begins with {first[:60]!r}; expected {TRACE_HEADER!r}")
            for number, line in enumerate(file, start=2):
                if not line.startswith("#"):
                    yield _parsed(line, f"{path}, line {number}")
    except (OSError, UnicodeDecodeError) as error:
        raise WorkError(f"{path}: cannot be read ({error})") from error


def replay(path: str | Path) -> int:
    """Executes a trace on a machine of its own and compares every result with what it says.

    Registers take the operands that the trace gives; so each line is checked by itself.

    Args:
        path: of a trace.

    Returns:
        Number of instructions that were checked.

    Raises:
        WorkError: a result differs, or the trace cannot be read.
    """
    seen: dict[str, Any] = {}

    def remember(instruction: str, /, **operands: Any) -> None:
        seen.clear()
        seen.update({n: v.copy() if isinstance(v, np.ndarray) else v for n, v in operands.items()})

    machine = Machine(45, memory=16, record=remember)
    checked = 0
    for instruction, operands in read_trace(path):
        try:
            same = _repeat(machine, instruction, operands)
        except (KeyError, ValueError, TypeError) as error:
            raise WorkError(f"{path}: {instruction} cannot be executed ({error!r})") from error
        differing = [name for name in same if not np.array_equal(operands[name], seen[name])]
        if differing:
            raise WorkError(f"{path}: {instruction} {operands} gives another {differing[0]}")
        checked += 1
    return checked


def _repeat(machine: Machine, instruction: str, operands: dict[str, Any]) -> tuple[str, ...]:
    """Executes an instruction on the operands of a trace; names what must come out the same."""
    match instruction:
        case "mp.setpat":
            machine.setpat(operands["slot"], operands["index"])
            return ("slot", "index")
        case "mp.ld":
            machine.memory[:16] = operands["value"]
            machine.ld(operands["vd"], 0)
            return ("vd", "value")
        case "mp.st":
            machine.write_register(operands["vs"], operands["value"])
            machine.st(operands["vs"], 0)
            return ("vs", "value")
        case "mp.vmac" | "mp.vmacm":
            machine.setpat(operands["slot"], operands["pattern"])
            _set(machine, operands)
            machine.accumulators[operands["acc"]] = operands["before"]
            a, b, slot = operands["va"], operands["vb"], operands["slot"]
            machine.vmac(operands["acc"], a, b, slot, vm=operands.get("vm"))
            return ("a", "b", "before", "after")
        case "mp.vmul":
            machine.setpat(operands["slot"], operands["pattern"])
            _set(machine, operands)
            a, b, slot = operands["va"], operands["vb"], operands["slot"]
            machine.vmul(operands["vd"], a, b, slot, operands["granule"])
            return ("a", "b", *(name for name in ("value0", "value1") if name in operands))
        case "mp.pack":
            # Its source is outside the machine; the register is what counts.
            machine.write_register(operands["vd"], operands["value"])
            return ()
        case "mp.red":
            if operands["count"] == 0:
                machine.red(operands["acc"], 0, 0)
                return ("after",)
            machine.accumulators[operands["acc"]] = operands["after"]
            return ()
        case "mp.add":
            machine.accumulators[operands["acc"]] = operands["before"]
            machine.add(operands["acc"], operands["number"])
            return ("before", "after")
        case _:
            raise ValueError(f"unknown instruction {instruction!r}")


def _set(machine: Machine, operands: dict[str, Any]) -> None:
    for register, content in (("va", "a"), ("vb", "b"), ("vm", "mask")):
        if register in operands:
            machine.write_register(operands[register], operands[content])


def _parsed(line: str, where: str) -> tuple[str, dict[str, Any]]:
    instruction, *words = line.split()
    operands: dict[str, Any] = {}
    try:
        for word in words:
            name, text = word.split("=")
            registered = name in _REGISTERS
            operands[name] = register_bytes(int(text, 16)) if registered else int(text)
    except ValueError as error:
        raise WorkError(f"{where}: not a line of a trace ({error})") from error
    return instruction, operands
