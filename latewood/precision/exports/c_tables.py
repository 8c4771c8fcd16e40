"""Constant tables of a C header, and where the buffers of a network lie in its memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from latewood.errors import RequestError
from latewood.precision.integer_network import Flatten, IntegerNetwork, step_buffers

__all__ = ["Places", "Tables", "float_literal", "placed_buffers"]

_TYPES: Final = {
    "uint8": "uint8_t",
    "uint16": "uint16_t",
    "int8": "int8_t",
    "int32": "int32_t",
    "float32": "float",
}
_LINE: Final = 96


class Tables:
    """``static const`` arrays, each of which is there once.

    Args:
        prefix: of their names.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.lines: list[str] = []
        self.bytes = 0
        self._known: dict[tuple[str, bytes], str] = {}

    def add(self, values: NDArray[np.generic]) -> str:
        """Adds an array, and returns its name.

        Args:
            values: not empty, of a type that C has.
        """
        kind = str(values.dtype)
        key = (kind, values.tobytes())
        if key not in self._known:
            name = self._known[key] = f"{self.prefix}_table_{len(self._known)}"
            flat = values.reshape(-1).tolist()
            shown = map(float_literal, flat) if kind == "float32" else map(str, flat)
            self.lines.append(f"static const {_TYPES[kind]} {name}[{len(flat)}] = {{")
            self.lines += _filled_lines(list(shown))
            self.lines.append("};")
            self.bytes += values.nbytes
        return self._known[key]


@dataclass(frozen=True)
class Places:
    """Where buffers lie.

    Args:
        expressions: a pointer to each buffer in C, by its number: to float for numbers, to uint8_t
            for codes.
        bytes: of the memory that buffers share.
        copied: whether the output is the input, which has to be copied.
    """

    expressions: dict[int, str]
    bytes: int
    copied: bool


def placed_buffers(network: IntegerNetwork, memory: str) -> Places:
    """Lays buffers into memory, those that are never needed together into the same.

    A flattened buffer is its source, and a sum takes the place of a residual that nobody reads any
    more. The network's input and output lie with the caller.

    Args:
        network: whose buffers are laid out.
        memory: name of an array of float.
    """
    root = _shared(network)
    first, last = _lives(network, root)
    source, target = root[network.source], root[network.target]
    offsets: dict[int, int] = {}
    sizes = {
        buffer: -(-_bytes(network, buffer) // 4) * 4
        for buffer in sorted(set(root), key=first.get)  # type: ignore[arg-type]
    }
    total = 0
    for buffer, size in sizes.items():
        if buffer in (source, target):
            continue
        near = sorted(
            (offsets[other], offsets[other] + sizes[other])
            for other in offsets
            if first[other] <= last[buffer] and first[buffer] <= last[other]
        )
        offset = 0
        for start, end in near:
            if offset + size <= start:
                break
            offset = max(offset, end)
        offsets[buffer] = offset
        total = max(total, offset + size)
    expressions = {}
    for buffer, own in enumerate(root):
        if own in (source, target):
            expressions[buffer] = "input" if own == source else "output"
        else:
            codes = network.buffers[buffer].bits is not None
            cast = "(uint8_t *)" if codes else ""
            expressions[buffer] = f"{cast}({memory} + {offsets[own] // 4})"
    return Places(expressions, total, source == target)


def _shared(network: IntegerNetwork) -> list[int]:
    """By buffer, the one whose memory it takes."""
    root = list(range(len(network.buffers)))
    for step in network.steps:
        if isinstance(step, Flatten):
            root[step.target] = root[step.source]
    ends = {root[network.source], root[network.target]}
    for place, step in enumerate(network.steps):
        if isinstance(step, Flatten):
            continue
        residual, target = step.epilogue.residual, step.epilogue.target
        if residual is None or target is None:
            continue
        old, new = root[residual], root[target]
        _, last = _lives(network, root)
        # Each number is read before the sum is written in its place.
        if last[old] == place and old != root[step.source] and not ends & {old, new}:
            root = [old if other == new else other for other in root]
    return root


def _lives(network: IntegerNetwork, root: Sequence[int]) -> tuple[dict[int, int], dict[int, int]]:
    """The first and the last step that need what lies in a buffer's memory."""
    first, last = dict.fromkeys(root, len(network.steps)), dict.fromkeys(root, -1)
    for place, step in enumerate(network.steps):
        reads, writes = step_buffers(step)
        for buffer in reads + writes:
            first[root[buffer]] = min(first[root[buffer]], place)
            last[root[buffer]] = max(last[root[buffer]], place)
    return first, last


def float_literal(value: float) -> str:
    """A float32 in C, to the bit.

    Raises:
        RequestError: NaN or infinity, which C99 has no literal for.
    """
    if not np.isfinite(value):
        raise RequestError(f"packed: holds the number {value}; expected finite ones for C")
    return f"{float(value).hex()}f"


def _bytes(network: IntegerNetwork, buffer: int) -> int:
    described = network.buffers[buffer]
    count = int(np.prod(described.shape))
    return count if described.bits is not None else 4 * count


def _filled_lines(shown: Sequence[str]) -> list[str]:
    lines, line = [], " "
    for text in shown:
        if len(line) + len(text) + 2 > _LINE:
            lines.append(line)
            line = " "
        line += f" {text},"
    return [*lines, line]
