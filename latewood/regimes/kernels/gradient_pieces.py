"""Gradients of outputs in one parameter, example by example, in forms that need not be dense."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Dense", "Grouped", "Lookup", "Mode", "Outer", "Piece", "contract", "dense_gradient"]

Mode = Literal["full", "trace", "diagonal", "sum"]


@dataclass(frozen=True)
class Outer:
    """Sums over positions of products: J = sum_s g_s a_s^T, or its transpose.

    Args:
        signals: (C, N, S, o), gradients of the outputs in what the layer returns.
        inputs: (N, S, i), what the layer reads.
        transposed: whether the parameter is (i, o).
    """

    signals: Tensor
    inputs: Tensor
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the parameter as a matrix."""
        sizes = self.signals.shape[-1], self.inputs.shape[-1]
        return (sizes[1], sizes[0]) if self.transposed else sizes

    def rows(self, low: int, high: int) -> Tensor:
        """(C, N, high - low, columns), the gradient of some rows of the matrix."""
        # One product for each example, over all outputs together: the inputs are not repeated.
        if self.transposed:
            together = self.signals.permute(1, 2, 0, 3).flatten(2)
            turned = self.inputs[..., low:high].mT @ together
            split: Tensor = turned.unflatten(2, (len(self.signals), -1)).permute(2, 0, 1, 3)
            return split
        together = self.signals[..., low:high].permute(1, 0, 3, 2).flatten(1, 2)
        joined = together @ self.inputs
        result: Tensor = joined.unflatten(1, (len(self.signals), -1)).transpose(0, 1)
        return result


@dataclass(frozen=True)
class Grouped:
    """The same for the weight of a convolution in groups.

    Args:
        signals: (C, N, G, S, o / G).
        inputs: (N, G, S, i), the patches that each group reads.
    """

    signals: Tensor
    inputs: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the parameter as a matrix."""
        return self.signals.shape[2] * self.signals.shape[-1], self.inputs.shape[-1]

    def rows(self, low: int, high: int) -> Tensor:
        """(C, N, high - low, columns), the gradient of some rows of the matrix."""
        each = self.signals.shape[-1]
        first, last = low // each, -(-high // each)
        joined = self.signals[:, :, first:last].mT @ self.inputs[:, first:last]
        return joined.flatten(2, 3)[:, :, low - first * each : high - first * each]


@dataclass(frozen=True)
class Lookup:
    """The gradient of a table of which each position reads a row.

    Args:
        signals: (C, N, S, d), zero where the row is fixed.
        indices: (N, S).
        size: rows of the table.
    """

    signals: Tensor
    indices: Tensor
    size: int

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the parameter."""
        return self.size, self.signals.shape[-1]

    def rows(self, low: int, high: int) -> Tensor:
        """(C, N, high - low, d), the gradient of some rows of the table."""
        inside = (self.indices >= low) & (self.indices < high)
        places = torch.where(inside, self.indices - low, 0)
        signals = self.signals * inside[..., None]
        count, examples, _, width = signals.shape
        result = signals.new_zeros(count, examples, high - low, width)
        where = places[None, :, :, None].expand(count, -1, -1, width)
        return result.scatter_add_(2, where, signals)


@dataclass(frozen=True)
class Dense:
    """The gradient itself.

    Args:
        gradients: (C, N, P).
    """

    gradients: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the parameter as a matrix of one column."""
        return self.gradients.shape[-1], 1

    def rows(self, low: int, high: int) -> Tensor:
        """(C, N, high - low, 1), the gradient of some entries."""
        return self.gradients[..., low:high, None]


Piece = Outer | Grouped | Lookup | Dense


def dense_gradient(pieces: Sequence[Piece]) -> Tensor:
    """(C, N, P), the gradient of a parameter, from those of all its uses."""
    return sum_of_rows(pieces, 0, _shape(pieces)[0]).flatten(2)


def sum_of_rows(pieces: Sequence[Piece], low: int, high: int) -> Tensor:
    """(C, N, high - low, columns) over all uses."""
    rows, columns = _shape(pieces)
    total: Tensor | None = None
    for piece in pieces:
        if piece.shape == (rows, columns):
            part = piece.rows(low, high)
        else:
            part = piece.rows(low * columns, high * columns)
            part = part.reshape(*part.shape[:2], high - low, columns)
        total = part if total is None else total + part
    assert total is not None
    return total


def contract(left: Sequence[Piece], right: Sequence[Piece], mode: Mode, memory: int) -> Tensor:
    """The kernel of one parameter between two blocks of examples.

    Args:
        left: its uses by the examples of the first block.
        right: its uses by those of the second, in the same order.
        mode: which of the outputs' kernels; "sum" takes signals of one output.
        memory: bytes that gradients in dense form may take.

    Returns:
        (N1, N2, C, C) for "full", (N1, N2, C) for "diagonal", else (N1, N2).
    """
    if all(isinstance(piece, Outer) for piece in (*left, *right)):
        first, second = _joined(left), _joined(right)
        if first is not None and second is not None and _without_gradients(first, second, mode):
            return _by_positions(first, second, mode)
        if first is not None and second is not None:
            left, right = [first], [second]
    if len(left) == 1 and isinstance(left[0], Lookup) and isinstance(right[0], Lookup):
        left, right = _shared_rows(left[0], right[0])
    rows, columns = _shape(left)
    count = left[0].rows(0, 1).shape[0] if rows else 1
    examples = _examples(left[0]) + _examples(right[0])
    size = count * examples * columns * _element_size(left[0])
    step = max(1, min(rows, memory // max(1, size)))
    total: Tensor | None = None
    for low in range(0, rows, step):
        high = min(low + step, rows)
        a = sum_of_rows(left, low, high).flatten(2)
        b = a if right is left else sum_of_rows(right, low, high).flatten(2)
        part = _products(a, b, mode)
        total = part if total is None else total + part
    if total is None:
        a, b = (piece.rows(0, 0).flatten(2) for piece in (left[0], right[0]))
        return _products(a, b, mode)
    return total


def _products(a: Tensor, b: Tensor, mode: Mode) -> Tensor:
    """Products of gradients (C, N1, P) and (C, N2, P), summed over P."""
    count, first, second = a.shape[0], a.shape[1], b.shape[1]
    if mode == "full":
        flat = a.flatten(0, 1) @ b.flatten(0, 1).T
        return flat.reshape(count, first, count, second).permute(1, 3, 0, 2)
    if mode == "diagonal":
        return (a @ b.mT).permute(1, 2, 0)
    if count == 1:
        return a[0] @ b[0].T
    return a.transpose(0, 1).flatten(1) @ b.transpose(0, 1).flatten(1).T


def _without_gradients(left: Outer, right: Outer, mode: Mode) -> bool:
    """Whether pairs of positions cost less than gradients in dense form."""
    positions = left.inputs.shape[1] * right.inputs.shape[1]
    if positions == 1:
        return True
    count, first, _, outputs = left.signals.shape
    second, width = right.inputs.shape[0], right.inputs.shape[-1]
    outer = count * count if mode == "full" else count
    by_pairs = positions * (outer * outputs + width + outer)
    formed = count * left.inputs.shape[1] * outputs * width * (1 / first + 1 / second)
    # Products of positions are many small ones, which run at a part of the speed of one large one.
    return positions <= 64 and 3 * by_pairs < outer * outputs * width + formed


def _by_positions(left: Outer, right: Outer, mode: Mode) -> Tensor:
    """(g_s . g_t)(a_s . a_t), summed over pairs of positions: no gradient is formed."""
    total: Tensor | None = None
    for s in range(left.inputs.shape[1]):
        for t in range(right.inputs.shape[1]):
            a = left.inputs[:, s] @ right.inputs[:, t].T
            g = _products(left.signals[:, :, s], right.signals[:, :, t], mode)
            part = g * a.reshape(a.shape + (1,) * (g.ndim - 2))
            total = part if total is None else total.add_(part)
    assert total is not None
    return total


def _joined(pieces: Sequence[Piece]) -> Outer | None:
    """Several uses of one matrix as one with the positions of all; None if they differ in kind."""
    uses = [piece for piece in pieces if isinstance(piece, Outer)]
    if len({use.transposed for use in uses}) > 1:
        return None
    if len(uses) == 1:
        return uses[0]
    return Outer(
        torch.cat([use.signals for use in uses], 2),
        torch.cat([use.inputs for use in uses], 1),
        uses[0].transposed,
    )


def _shared_rows(left: Lookup, right: Lookup) -> tuple[list[Piece], list[Piece]]:
    """The same gradients without the rows of the table that no example reads."""
    used, places = torch.cat([left.indices.flatten(), right.indices.flatten()]).unique(
        return_inverse=True
    )
    first = places[: left.indices.numel()].reshape(left.indices.shape)
    second = places[left.indices.numel() :].reshape(right.indices.shape)
    size = len(used)
    return [Lookup(left.signals, first, size)], [Lookup(right.signals, second, size)]


def _shape(pieces: Sequence[Piece]) -> tuple[int, int]:
    shapes = [piece.shape for piece in pieces]
    # A dense gradient beside structured ones takes their form.
    return next((shape for shape in shapes if shape[1] != 1), shapes[0])


def _examples(piece: Piece) -> int:
    return int(piece.gradients.shape[1] if isinstance(piece, Dense) else piece.signals.shape[1])


def _element_size(piece: Piece) -> int:
    tensor = piece.gradients if isinstance(piece, Dense) else piece.signals
    return tensor.element_size()


def bytes_of(piece: Piece, classes: int) -> int:
    """What a piece of one output holds once there are so many outputs."""
    size = 0
    for name, value in vars(piece).items():
        if isinstance(value, Tensor):
            held = math.prod(value.shape) * value.element_size()
            size += held * (classes if name in ("signals", "gradients") else 1)
    return size
