"""The weight transformations of drop-connect: weights that are stuck for a step of training."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from latewood.core import FAULTS, Follows
from latewood.core.integer_codes import HasGrid, codes_on_grid
from latewood.faults.crossbar import Crossbar
from latewood.faults.encoding import Encoded, encode_held
from latewood.faults.faultable_weights import Faultable, Part
from latewood.faults.simulation import signs_of
from latewood.kernels.faults import GOOD, LRS, Limits, Stream, draw_states, limits_of, read_drawn

__all__ = ["DroppedWeight", "EmulatedCells", "Emulation", "StuckWeight", "transformation_of"]

Emulation = Literal["zero", "zero+max", "cells"]


class StuckWeight(nn.Module):
    """A weight transformation whose stuck weights are drawn anew from time to time."""

    order = FAULTS

    def draw(self, streams: Sequence[Stream], hrs: float, lrs: float) -> None:
        """Draws which weights are stuck.

        Args:
            streams: one for each part of the weight.
            hrs: rate of weights (or cells) stuck in the high-resistance state.
            lrs: rate of those in the low-resistance state.
        """
        raise NotImplementedError

    def dropped(self) -> tuple[int, int]:
        """How many weights are stuck, and of how many; of cells the first is not known, 0."""
        raise NotImplementedError


class DroppedWeight(StuckWeight):
    r"""Weights of 0, or of plus or minus the largest, in training; in evaluation the weight itself.

    :math:`\tilde W = c\,(M \odot W) + S \max|W|` with M of 0 and 1, S of 0 and the signs of weights
    stuck at the largest, and no gradient through the maximum.

    Args:
        weight: gives shape and device.
        parts: rows that have a stream each.
        with_largest: whether weights may be stuck at the largest.
        inverted: whether what is left is rescaled by c = 1 / (1 - rate), else 1.
    """

    kept: Tensor
    signs: Tensor
    factor: Tensor

    def __init__(
        self, weight: Tensor, parts: Sequence[Part], *, with_largest: bool, inverted: bool
    ) -> None:
        super().__init__()
        self._parts, self._with_largest, self._inverted = len(parts), with_largest, inverted
        kind = torch.promote_types(weight.dtype, torch.float32)
        # Not persistent: a function of seed and step, and no part of a network.
        # Bytes, since products of floats with bool are three times slower on processors.
        kept = torch.ones(weight.shape, dtype=torch.uint8, device=weight.device)
        self.register_buffer("kept", kept, persistent=False)
        factor = torch.ones((), dtype=kind, device=weight.device)
        self.register_buffer("factor", factor, persistent=False)
        self.follows = {"kept": Follows(start=1.0)}
        if with_largest:
            signs = torch.zeros(weight.shape, dtype=torch.int8, device=weight.device)
            self.register_buffer("signs", signs, persistent=False)
            self.follows["signs"] = Follows(start=0.0)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight that the layer computes with."""
        if not self.training:
            return weight
        dropped = weight * self.kept
        if self._inverted:
            dropped = (dropped * self.factor).to(weight.dtype)
        return dropped + self.signs * self._largest(weight) if self._with_largest else dropped

    def draw(self, streams: Sequence[Stream], hrs: float, lrs: float) -> None:
        """Draws which weights are stuck, a number a weight."""
        limits = limits_of(hrs, lrs)
        shape = self.kept.shape
        sizes = self._counts(shape)
        states = [draw_states(n, stream, limits) for n, stream in zip(sizes, streams, strict=True)]
        if self._inverted:
            self.factor.fill_(1.0 / (1.0 - hrs - lrs) if hrs + lrs < 1.0 else 0.0)
        every = _joined(states).view(shape)
        if not self._with_largest:
            self.kept.copy_(every.bitwise_xor_(1))  # good is 0 and stuck 1, with one kind alone
            return
        self.kept.copy_(every == GOOD)
        signs = [
            draw_states(n, signs_of(stream), limits_of(0.5, 0.0))
            for n, stream in zip(sizes, streams, strict=True)
        ]
        positive = 2 * _joined(signs).view(shape).to(torch.int8) - 1
        self.signs.copy_(torch.where(every == LRS, positive, 0))

    def dropped(self) -> tuple[int, int]:
        """How many weights are stuck, and of how many."""
        return self.kept.numel() - int(self.kept.sum()), self.kept.numel()

    def _largest(self, weight: Tensor) -> Tensor:
        """max |W|: of each part, which is on crossbars of its own, a number that broadcasts."""
        sizes = weight.detach().abs()
        if self._parts == 1:
            return sizes.amax()
        every = sizes.view(self._parts, -1).amax(1)
        rows = every.repeat_interleave(weight.shape[0] // self._parts)
        return rows.view(-1, *(1 for _ in weight.shape[1:]))

    def _counts(self, shape: torch.Size) -> list[int]:
        # Not noted before: shapes may change, and the parts of a projection stay of one size.
        return [shape.numel() // self._parts] * self._parts


class EmulatedCells(StuckWeight):
    """A weight as a device with stuck cells holds it, in training; else the weight itself.

    The weight is encoded, written, read and decoded in every pass, with the unit of that moment;
    gradients pass straight through.

    Args:
        held: the weight and its parts.
        crossbar: how it is held.
        formats: the transformations of the weight that may put it on a grid, whose integers are
            then taken.
    """

    follows: ClassVar[dict[str, Follows]] = {}
    key: Tensor

    def __init__(self, held: Faultable, crossbar: Crossbar, formats: Sequence[nn.Module]) -> None:
        super().__init__()
        weight = held.weight.stored
        self._axis = held.axes.outputs
        self._crossbar = "/".join(
            (
                str(crossbar.weight_bits),
                str(crossbar.bits_per_cell),
                crossbar.scheme,
                crossbar.top_slice,
                crossbar.granularity,
            )
        )
        self._names = "\n".join(part.name for part in held.parts)
        # In a tuple, so that they do not become modules of this one.
        self._formats = tuple(formats)
        key = torch.tensor([0, 0, *limits_of(0.0, 0.0)[:2]], device=weight.device)
        self.register_buffer("key", key, persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight that the layer computes with."""
        if not self.training:
            return weight
        scale = bits = None
        for transformation in self._formats:
            grid = transformation.grid() if isinstance(transformation, HasGrid) else None
            bits, scale = (None, None) if grid is None else grid
        read: Tensor = torch.ops.latewood.read_cells(
            weight, self.key, self._names, self._crossbar, self._axis, scale, bits
        )
        return read

    def draw(self, streams: Sequence[Stream], hrs: float, lrs: float) -> None:
        """Notes of which map the cells are from now on; they are drawn where they are read."""
        first = streams[0]
        self._names = "\n".join(stream.name for stream in streams)
        limits = limits_of(hrs, lrs)
        self.key.copy_(torch.tensor([first.seed, first.map, limits.low, limits.high]))

    def dropped(self) -> tuple[int, int]:
        """Nothing is known of weights: cells are drawn."""
        return 0, 0


def transformation_of(
    held: Faultable,
    emulate: Emulation,
    crossbar: Crossbar,
    formats: Sequence[nn.Module],
    *,
    inverted: bool = False,
) -> StuckWeight:
    """The transformation of a weight for a kind of emulation.

    Args:
        held: the weight.
        emulate: "zero", "zero+max" or "cells".
        crossbar: of the cells.
        formats: what may put the weight on a grid.
        inverted: whether what is left is rescaled.
    """
    if emulate == "cells":
        return EmulatedCells(held, crossbar, formats)
    return DroppedWeight(
        held.weight.stored,
        held.parts,
        with_largest=emulate == "zero+max",
        inverted=inverted,
    )


@torch.library.custom_op("latewood::read_cells", mutates_args=())
def _read_cells(
    weight: Tensor,
    key: Tensor,
    names: str,
    crossbar: str,
    axis: int,
    scale: Tensor | None,
    bits: Tensor | None,
) -> Tensor:
    """What is read of a weight on one device, as an operation that compilers leave as it is."""
    seed, number, low, high = key.tolist()
    limits, held = Limits(low, high, 16), _crossbar_of(crossbar)
    streams = [Stream(seed, number, name) for name in names.split("\n")]
    read = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
    size = weight.shape[0] // len(streams) if weight.dim() else 1
    for place, stream in enumerate(streams):
        rows = slice(place * size, (place + 1) * size) if len(streams) > 1 else slice(None)
        part = weight[rows] if weight.dim() else weight
        target = read[rows] if weight.dim() else read
        if scale is None or bits is None:
            encoded = encode_held(part, held, channel_axis=axis)
            codes = read_drawn(encoded.codes, held.layout, stream, limits)
        else:
            on_grid = codes_on_grid(part, _rows(bits, rows, weight), _rows(scale, rows, weight))
            encoded = Encoded(on_grid.codes, on_grid.unit)
            codes = encoded.codes
            most = int(on_grid.bits.max()) if on_grid.bits.numel() else 0
            if most:
                layout = held.layout_of(most)
                codes = read_drawn(codes, layout, stream, limits, bits=on_grid.bits)
        if len(streams) == 1:
            return encoded.decoded(codes, weight.dtype)
        target.copy_(encoded.decoded(codes, weight.dtype))
    return read


@_read_cells.register_fake
def _(
    weight: Tensor,
    key: Tensor,
    names: str,
    crossbar: str,
    axis: int,
    scale: Tensor | None,
    bits: Tensor | None,
) -> Tensor:
    return torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)


def _straight_through(_: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return gradient, None, None, None, None, None, None


torch.library.register_autograd("latewood::read_cells", _straight_through)


@functools.lru_cache(maxsize=64)
def _crossbar_of(text: str) -> Crossbar:
    weight_bits, bits_per_cell, scheme, top_slice, granularity = text.split("/")
    return Crossbar(
        int(weight_bits),
        int(bits_per_cell),
        scheme,  # type: ignore[arg-type]
        top_slice=top_slice,  # type: ignore[arg-type]
        granularity=granularity,  # type: ignore[arg-type]
    )


def _rows(tensor: Tensor, rows: slice, weight: Tensor) -> Tensor:
    along = tensor.dim() == weight.dim() and tensor.shape[0] == weight.shape[0] > 1
    return tensor[rows] if along else tensor


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
