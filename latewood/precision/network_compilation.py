"""From the graph of a packed model to its integer network: operations become few, fused steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor

from latewood.kernels.mixed_products import CodeWeights
from latewood.kernels.mixed_products.code_products import largest_sum
from latewood.precision.code_thresholds import sum_thresholds
from latewood.precision.integer_network import (
    Buffer,
    Elementwise,
    Encoder,
    Epilogue,
    Flatten,
    FloatProduct,
    IntegerNetwork,
    PackedProduct,
    Pool,
    Step,
)
from latewood.precision.network_operations import (
    NotCompiled,
    Operation,
    listed_operations,
)
from latewood.precision.packed_graph import NetworkGraph
from latewood.precision.packed_layers import PackedLayer

__all__ = ["compile_network"]

_MOST_COUNTED_BITS: Final = 4
"""Codes of more bits have so many thresholds that the formula is faster."""


def compile_network(graph: NetworkGraph, shape: tuple[int, ...]) -> IntegerNetwork | str:
    """The steps of a packed network for inputs of a shape.

    A batch norm, a sum with a residual and a clipping behind a product become its epilogue. Where
    nothing but codes are read of a packed product, its sums become codes by integer thresholds.

    Args:
        graph: of a packed model.
        shape: of one image or vector of the input, without the axis of the images.

    Returns:
        The network, or the reason why there is none.
    """
    try:
        return _Compiler(graph, shape).network()
    except NotCompiled as reason:
        return str(reason)


@dataclass
class _Chain:
    """An operation and those behind it that become its epilogue."""

    head: int
    tail: int
    affine: Operation | None = None
    residual: int | None = None
    clip: Operation | None = None
    encoders: list[Encoder] = field(default_factory=list)


class _Compiler:
    def __init__(self, graph: NetworkGraph, shape: tuple[int, ...]) -> None:
        listing = listed_operations(graph, shape)
        self.operations, self.output, self.batch = (
            listing.operations,
            listing.output,
            listing.batch,
        )
        self.readers: list[list[int]] = [[] for _ in self.operations]
        for place, operation in enumerate(self.operations):
            for source in operation.sources:
                self.readers[source].append(place)
        self.buffers: list[Buffer] = []
        self.numbers: dict[int, int] = {}  # buffer by place of the value
        self.codes: dict[int, int] = {}  # buffer by place of the packed product that reads it
        self.prepared: dict[int, tuple[CodeWeights, Any]] = {}

    def network(self) -> IntegerNetwork:
        for place, operation in enumerate(self.operations):
            if operation.kind == "packed":
                layer: PackedLayer = operation.details["layer"]
                product, affine = layer._prepared()
                self.prepared[place] = product.weights, affine
                finite = torch.cat([affine.scale, affine.bias]).isfinite()
                if not bool(finite.all()):
                    raise NotCompiled(f"the layer {operation.details['name']} is not finite")
        chains = self._chains()
        for chain in chains:
            self._give_buffers(chain)
        steps = []
        for chain in chains:
            steps += self._steps(chain)
        return IntegerNetwork(
            tuple(self.buffers),
            tuple(steps),
            self.numbers[0],
            self.numbers[self.output],
            self.operations[self.output].axes,
            self.batch,
        )

    def _chains(self) -> list[_Chain]:
        taken: set[int] = set()
        chains = []
        for place, operation in enumerate(self.operations):
            if place in taken:
                continue
            chain = _Chain(place, place)
            if operation.kind in ("affine", "add", "clip"):
                # The head itself is part of the epilogue of what it reads.
                self._extend(chain, place)
            if operation.kind not in ("input", "flatten"):
                while (following := self._only_reader(chain.tail)) is not None:
                    if following in taken or not self._extend(chain, following):
                        break
            taken.update(range(chain.head, chain.head + 1))
            taken.update(self._members(chain))
            chains.append(chain)
        return sorted(chains, key=lambda chain: chain.tail)

    def _members(self, chain: _Chain) -> list[int]:
        members, place = [chain.head], chain.head
        while place != chain.tail:
            place = self.readers[place][0]
            members.append(place)
        return members

    def _only_reader(self, place: int) -> int | None:
        readers = self.readers[place]
        return readers[0] if len(readers) == 1 and place != self.output else None

    def _extend(self, chain: _Chain, place: int) -> bool:
        """Takes an operation into the epilogue if its turn there has not passed."""
        operation = self.operations[place]
        begun = chain.residual is not None or chain.clip is not None
        if operation.kind == "affine" and chain.affine is None and not begun:
            chain.affine = operation
        elif operation.kind == "add" and not begun:
            own = operation.sources[0] if place == chain.head else chain.tail
            one, other = operation.sources
            chain.residual = other if own == one else one
        elif operation.kind == "clip" and chain.clip is None:
            chain.clip = operation
        else:
            return False
        chain.tail = place
        return True

    def _give_buffers(self, chain: _Chain) -> None:
        """Buffers for what others read of a chain's value, as numbers and as codes."""
        readers = self.readers[chain.tail]
        packed = [place for place in readers if self.operations[place].kind == "packed"]
        shape = self.operations[chain.tail].shape
        kind = self.operations[chain.head].kind
        plain = kind in ("input", "flatten") or len(packed) < len(readers)
        if plain or chain.tail == self.output:
            self.numbers[chain.tail] = self._buffer(Buffer(shape))
        known: dict[tuple[Any, ...], int] = {}
        for place in packed:
            weights, affine = self.prepared[place]
            key = (affine.alpha, affine.shift, *weights.input_bits.tolist())
            if key not in known:
                known[key] = self._buffer(Buffer(shape, weights.input_bits))
                thresholds, signs = None, None
                counted = not plain and chain.tail != self.output and chain.residual is None
                if kind == "packed" and counted and chain.affine is None:
                    thresholds, signs = self._thresholds(chain, affine, weights.input_bits)
                chain.encoders.append(
                    Encoder(known[key], affine.alpha, affine.shift, thresholds, signs)
                )
            self.codes[place] = known[key]

    def _buffer(self, buffer: Buffer) -> int:
        self.buffers.append(buffer)
        return len(self.buffers) - 1

    def _thresholds(
        self, chain: _Chain, reader: Any, bits: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        weights, affine = self.prepared[chain.head]
        largest = largest_sum(weights)
        if int(bits.max()) > _MOST_COUNTED_BITS or largest >= (1 << 31) - 1:
            return None, None

        def numbers(sums: Tensor) -> Tensor:
            values = sums.float() * affine.scale + affine.bias
            return values if chain.clip is None else _clipped(values, chain.clip)

        return sum_thresholds(numbers, affine.scale >= 0, largest, reader.alpha, reader.shift, bits)

    def _steps(self, chain: _Chain) -> list[Step]:
        head = self.operations[chain.head]
        if head.kind == "input":
            return self._encoding(chain)
        if head.kind == "flatten":
            flat = Flatten(self.numbers[head.sources[0]], self.numbers[chain.tail])
            return [flat, *self._encoding(chain)]
        clip = chain.clip.details if chain.clip is not None else {"low": None, "high": None}
        affine = {} if chain.affine is None else chain.affine.details
        epilogue = Epilogue(
            affine.get("factor"),
            affine.get("addend"),
            None if chain.residual is None else self.numbers[chain.residual],
            clip["low"],
            clip["high"],
            self.numbers.get(chain.tail),
            tuple(chain.encoders),
        )
        details = head.details
        if head.kind == "packed":
            weights, affine_ = self.prepared[chain.head]
            return [
                PackedProduct(
                    self.codes[chain.head],
                    details["name"],
                    weights,
                    details["taps"],
                    affine_.scale,
                    affine_.bias,
                    epilogue,
                )
            ]
        source = self.numbers[head.sources[0]]
        if head.kind == "float":
            weight = details["weight"].detach().contiguous()
            bias = None if details["bias"] is None else details["bias"].detach().contiguous()
            name, taps, groups = details["name"], details["taps"], details["groups"]
            return [FloatProduct(source, name, weight, bias, taps, groups, epilogue)]
        if head.kind == "pool":
            return [
                Pool(
                    source,
                    details["pool"],
                    details["kernel"],
                    details["taps"],
                    details["counts_padding"],
                    details["divisor"],
                    epilogue,
                )
            ]
        return [Elementwise(source, epilogue)]

    def _encoding(self, chain: _Chain) -> list[Step]:
        if not chain.encoders:
            return []
        epilogue = Epilogue(encoders=tuple(chain.encoders))
        return [Elementwise(self.numbers[chain.tail], epilogue)]


def _clipped(numbers: Tensor, clip: Operation) -> Tensor:
    low, high = clip.details["low"], clip.details["high"]
    if low is not None:
        numbers = numbers.clamp_min(low)
    return numbers if high is None else numbers.clamp_max(high)
