"""The machine: 32 registers of 128 bits, a pattern table, and dot products of mixed widths."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable
from typing import Any, Final, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from latewood.errors import invalid
from latewood.precision.number_format import code
from latewood.precision.patterns import PATTERNS, Pattern, pattern_set
from latewood.precision.simd.register_format import (
    REGISTER_BYTES,
    element_layout,
    pack_registers,
    register_number,
    unpack_registers,
)

__all__ = ["ACCUMULATORS", "REGISTERS", "Machine", "Recorder", "wrap_int32"]

REGISTERS: Final = 32
ACCUMULATORS: Final = 32

_TABLE_SIZES: Final = (4, 8, 45)


class Recorder(Protocol):
    """What is told of every instruction; ``TraceWriter`` writes them down."""

    def __call__(self, instruction: str, /, **operands: Any) -> None:
        """An instruction with its operands; registers are (16,) bytes."""


class Machine:
    """A core with dot products whose elements have 4, 2 and 1 bits within one register.

    It has 32 vector registers of 128 bits, 32 accumulators of 32 bits that wrap around, a table of
    4, 8 or 45 patterns, and byte-addressed memory. With :math:`m = 2u - (2^p - 1)` the odd integer
    of a code, and :math:`M(p) = 4^{4 - p}`, the unit of an accumulator is 1/64:

    .. math:: y = \\alpha_w \\alpha_x \\, \\mathrm{acc} / 64 + \\mathrm{bias}

    Args:
        patterns: in the table at first, ascending by index: 4, 8 or 45 for a named set, or indices
            and triples (g4, g2, g1), at most 45.
        memory: bytes.
        record: called for every instruction with its operands, such as a ``TraceWriter``.

    Raises:
        RequestError: no such patterns.

    Source:
        [I]: SySMOL's own instruction set is not published.
    """

    def __init__(
        self,
        patterns: int | Iterable[int | Pattern] = 4,
        *,
        memory: int = 1 << 16,
        record: Recorder | None = None,
    ) -> None:
        indices = pattern_set(patterns)
        size = next(size for size in _TABLE_SIZES if len(indices) <= size)
        if isinstance(memory, bool) or not isinstance(memory, int) or memory < 0:
            raise invalid("memory", memory, "a number of bytes")
        self.registers: NDArray[np.uint8] = np.zeros((REGISTERS, REGISTER_BYTES), dtype=np.uint8)
        self.accumulators: NDArray[np.int32] = np.zeros(ACCUMULATORS, dtype=np.int32)
        self.memory: NDArray[np.uint8] = np.zeros(memory, dtype=np.uint8)
        self.pattern_table: list[int] = [0] * size
        self.executed: Counter[str] = Counter()
        """Instructions so far, by name."""
        self._record = record
        # Decoded numbers of each register by slot, until the register or the table changes.
        self._decoded: list[dict[int, NDArray[np.int64]]] = [{} for _ in range(REGISTERS)]
        for slot, index in enumerate(indices):
            self.setpat(slot, index)

    def slot_of(self, pattern: int) -> int:
        """The table's slot that holds the pattern of this index.

        Raises:
            RequestError: the table has no such pattern.
        """
        if pattern not in self.pattern_table:
            shown = [PATTERNS[index] for index in sorted(set(self.pattern_table))]
            raise invalid("pattern", PATTERNS[pattern], f"one of the table's, {shown}")
        return self.pattern_table.index(pattern)

    def setpat(self, slot: int, index: int) -> None:
        """``mp.setpat slot, index``: the slot of the pattern table holds this pattern from now on.

        Args:
            slot: of the table.
            index: of a pattern, 0 to 44.
        """
        slot = _place("slot", slot, len(self.pattern_table))
        self.pattern_table[slot] = _place("index", index, len(PATTERNS))
        for decoded in self._decoded:
            decoded.pop(slot, None)
        self._done("mp.setpat", slot=slot, index=self.pattern_table[slot])

    def ld(self, vd: int, address: int) -> None:
        """``mp.ld vd, [address]``: loads 16 bytes into a register."""
        vd, start = self._register("vd", vd), self._address(address)
        self._write(vd, self.memory[start : start + REGISTER_BYTES])
        self._done("mp.ld", vd=vd, address=start, value=self.registers[vd])

    def st(self, vs: int, address: int) -> None:
        """``mp.st vs, [address]``: stores a register's 16 bytes."""
        vs, start = self._register("vs", vs), self._address(address)
        self.memory[start : start + REGISTER_BYTES] = self.registers[vs]
        self._done("mp.st", vs=vs, address=start, value=self.registers[vs])

    def vmac(self, acc: int, va: int, vb: int, slot: int, *, vm: int | None = None) -> None:
        r"""``mp.vmac acc, va, vb, slot``: adds a dot product, :math:`\sum_j M(p_j) a_j b_j`.

        Args:
            acc: accumulator; wraps around at 32 bits.
            va: register with the one operand.
            vb: register with the other.
            slot: of the pattern that both have.
            vm: register whose bit j says whether element j counts (``mp.vmacm``); all do without.
        """
        acc = _place("acc", acc, ACCUMULATORS)
        va, vb = self._register("va", va), self._register("vb", vb)
        slot = _place("slot", slot, len(self.pattern_table))
        layout = element_layout(self.pattern_table[slot])
        products = self._numbers(va, slot) * layout.multipliers * self._numbers(vb, slot)
        operands: dict[str, Any] = {"acc": acc, "va": va, "vb": vb, "slot": slot}
        contents = {"a": self.registers[va], "b": self.registers[vb]}
        if vm is not None:
            vm = self._register("vm", vm)
            kept = np.unpackbits(self.registers[vm], bitorder="little")[: layout.size]
            products = products * kept
            operands["vm"] = vm
            contents["mask"] = self.registers[vm]
        before = int(self.accumulators[acc])
        after = wrap_int32(before + int(products.sum()))
        self.accumulators[acc] = after
        name = "mp.vmac" if vm is None else "mp.vmacm"
        pattern = self.pattern_table[slot]
        self._done(name, **operands, pattern=pattern, **contents, before=before, after=after)

    def vmul(self, vd: int, va: int, vb: int, slot: int, granule: int) -> None:
        """``mp.vmul vd, va, vb, slot, granule``: products of one granule as lanes of 16 bits.

        The lanes hold :math:`M(p) a_j b_j`, so that a dot product is the sum of the lanes of eight
        granules. The 16 products of a 1-bit granule fill ``vd`` and the register after it; lanes
        without a product are 0.

        Args:
            vd: destination, with another register after it for a 1-bit granule.
            va: register with the one operand.
            vb: register with the other.
            slot: of the pattern that both have.
            granule: 0 to 7, from bit 0 on.
        """
        vd = self._register("vd", vd)
        va, vb = self._register("va", va), self._register("vb", vb)
        slot = _place("slot", slot, len(self.pattern_table))
        granule = _place("granule", granule, 8)
        layout = element_layout(self.pattern_table[slot])
        inside = layout.granules == granule
        products = self._numbers(va, slot) * layout.multipliers * self._numbers(vb, slot)
        count = int(inside.sum())
        if count > 8 and vd == REGISTERS - 1:
            raise invalid("vd", vd, f"at most {REGISTERS - 2}: 16 lanes fill two registers")
        lanes = np.zeros(16 if count > 8 else 8, dtype="<i2")
        lanes[:count] = products[inside]
        # The operands may be the destination: read first, then write.
        contents = {"a": self.registers[va].copy(), "b": self.registers[vb].copy()}
        halves = lanes.view(np.uint8).reshape(-1, REGISTER_BYTES)
        for number, half in enumerate(halves):
            self._write(vd + number, half)
        values = {f"value{number}": half for number, half in enumerate(halves)}
        pattern = self.pattern_table[slot]
        self._done(
            "mp.vmul",
            vd=vd,
            va=va,
            vb=vb,
            slot=slot,
            granule=granule,
            pattern=pattern,
            **contents,
            **values,
        )

    def pack(self, vd: int, source: ArrayLike, slot: int, scale: float = 1.0) -> None:
        """``mp.pack vd, [source], slot, scale``: quantises numbers and packs their codes.

        Args:
            vd: destination.
            source: (N,) numbers, float32 or int32, one for each element of the pattern.
            slot: of the pattern.
            scale: positive; the codes are those of ``source / scale``, computed in float32.

        Raises:
            RequestError: another number of elements, NaN, a scale that is not positive.
        """
        vd = self._register("vd", vd)
        slot = _place("slot", slot, len(self.pattern_table))
        pattern = self.pattern_table[slot]
        layout = element_layout(pattern)
        numbers = torch.as_tensor(np.asarray(source), dtype=torch.float32)
        if numbers.shape != (layout.size,):
            raise invalid("source", tuple(numbers.shape), f"{layout.size} numbers")
        if not scale > 0:
            raise invalid("scale", scale, "a positive number")
        scaled = numbers / torch.tensor(scale, dtype=torch.float32)
        codes = code(scaled, torch.from_numpy(layout.bits.copy()))
        self._write(vd, pack_registers(codes.numpy(), pattern))
        self._done("mp.pack", vd=vd, slot=slot, pattern=pattern, value=self.registers[vd])

    def red(self, acc: int, first: int, count: int) -> int:
        """``mp.red acc, first, count``: the sum of accumulators next to one another; 0 for none.

        Args:
            acc: destination.
            first: of the accumulators.
            count: how many; with 0 the instruction clears ``acc``.

        Returns:
            The sum, wrapped to 32 bits.
        """
        acc = _place("acc", acc, ACCUMULATORS)
        count = _place("count", count, ACCUMULATORS + 1)
        first = _place("first", first, ACCUMULATORS - max(count, 1) + 1)
        total = wrap_int32(int(self.accumulators[first : first + count].sum(dtype=np.int64)))
        self.accumulators[acc] = total
        self._done("mp.red", acc=acc, first=first, count=count, after=total)
        return total

    def add(self, acc: int, number: int) -> int:
        """``mp.add acc, number``: adds a number of 32 bits, such as a bias.

        Returns:
            The sum, wrapped to 32 bits.
        """
        acc = _place("acc", acc, ACCUMULATORS)
        number = operator.index(number)
        if not -(1 << 31) <= number < 1 << 31:
            raise invalid("number", number, "a number of 32 bits")
        before = int(self.accumulators[acc])
        total = wrap_int32(before + number)
        self.accumulators[acc] = total
        self._done("mp.add", acc=acc, number=number, before=before, after=total)
        return total

    def register_number(self, vector: int) -> int:
        """A register as one number of 128 bits."""
        return register_number(self.registers[self._register("vector", vector)])

    def write_register(self, vector: int, content: ArrayLike) -> None:
        """Sets a register from outside, as a debugger would; no instruction.

        Args:
            vector: the register.
            content: (16,) bytes.
        """
        value = np.asarray(content)
        if value.dtype != np.uint8 or value.shape != (REGISTER_BYTES,):
            raise invalid("content", f"{value.dtype} of shape {value.shape}", "16 bytes (uint8)")
        self._write(self._register("vector", vector), value)

    def _numbers(self, vector: int, slot: int) -> NDArray[np.int64]:
        decoded = self._decoded[vector]
        if slot not in decoded:
            pattern = self.pattern_table[slot]
            codes = unpack_registers(self.registers[vector], pattern)
            decoded[slot] = 2 * codes - ((1 << element_layout(pattern).bits) - 1)
        return decoded[slot]

    def _write(self, vector: int, content: NDArray[np.uint8]) -> None:
        self.registers[vector] = content
        self._decoded[vector].clear()

    def _register(self, name: str, vector: int) -> int:
        return _place(name, vector, REGISTERS)

    def _address(self, address: int) -> int:
        room = len(self.memory) - REGISTER_BYTES
        if room < 0:
            raise invalid("address", address, f"memory for 16 bytes; there are {len(self.memory)}")
        return _place("address", address, room + 1)

    def _done(self, instruction: str, **operands: Any) -> None:
        self.executed[instruction] += 1
        if self._record is not None:
            self._record(instruction, **operands)


def wrap_int32(number: int) -> int:
    """What 32 bits in two's complement keep of an integer."""
    return ((number + (1 << 31)) & 0xFFFFFFFF) - (1 << 31)


def _place(name: str, value: int, size: int) -> int:
    try:
        place = operator.index(value)
    except TypeError:
        place = -1
    if isinstance(value, bool) or not 0 <= place < size:
        raise invalid(name, value, f"a whole number from 0 to {size - 1}")
    return place
