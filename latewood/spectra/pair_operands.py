"""The two matrices that a pair of layers compares, and which of their directions meet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import Tensor, nn

from latewood.errors import RequestError, invalid
from latewood.spectra.alignment import Alignment, alignment, gate_directions, tap_directions
from latewood.spectra.matrices.attention import Heads, fused_heads, own_heads, projection
from latewood.spectra.matrices.named_matrices import MatrixView
from latewood.spectra.matrices.weights import current_matrix, stored_dtype
from latewood.spectra.solvers.leading_vectors import Factors

__all__ = ["Pair", "Part", "Side", "fits", "owner_of", "pair_sides", "sides_alignment"]

Part = Literal["", "query-key", "value", "forward", "backward"]

_CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


@dataclass(frozen=True)
class Pair:
    """Two weights of which the second reads what the first writes.

    Args:
        outputs: full name of the parameter that writes.
        inputs: full name of the parameter that reads.
        part: "query-key" compares the two inside ``outputs``, a fused projection of attention, or
            the queries of ``outputs`` with the keys of ``inputs``; "value" takes the values of a
            fused projection; "forward" and "backward" take that half of the columns of ``inputs``,
            which reads both directions of a bidirectional layer.
    """

    outputs: str
    inputs: str
    part: Part = ""

    @property
    def name(self) -> str:
        """The pair in one word, for tables and plots."""
        if self.part == "query-key" and self.outputs == self.inputs:
            return f"{self.outputs}[query->key]"
        first = f"{self.outputs}[value]" if self.part == "value" else self.outputs
        half = f"[{self.part}]" if self.part in ("forward", "backward") else ""
        return f"{first}->{self.inputs}{half}"


@dataclass(frozen=True)
class Side:
    """What one layer of a pair contributes.

    Args:
        view: the matrix, or batch of matrices, to decompose.
        directions: picks the directions that meet the other side's from the decomposition, (..., d,
            k).
    """

    view: MatrixView
    directions: Callable[[Factors], Tensor]


def pair_sides(
    model: nn.Module, pair: Pair, *, gate: int = 2, per_head: bool = False
) -> tuple[Side, Side]:
    """The side that writes and the side that reads.

    Args:
        model: the model of both.
        pair: which.
        gate: which gate of recurrent layers, see ``gate_directions``.
        per_head: compare values and output projections head by head.

    Raises:
        RequestError: a name that is not a matrix of the model, or a layer that the pair's part
            cannot be taken from.
    """
    if pair.part == "query-key":
        return _query_key(model, pair)
    if pair.part == "value":
        return _value_output(model, pair, per_head=per_head)
    return _plain(model, pair.outputs, "", gate)[0], _plain(model, pair.inputs, pair.part, gate)[1]


def sides_alignment(
    sides: tuple[Side, Side], found: Mapping[str, Factors], *, top: int = 10
) -> Alignment:
    """The alignment of two sides whose matrices are decomposed, averaged over heads.

    Args:
        sides: as ``pair_sides`` gives them.
        found: factors by the name of the view.
        top: entries of the diagonal that the score averages.

    Raises:
        RequestError: layers that do not fit each other.
    """
    outputs, inputs = (side.directions(found[side.view.name]) for side in sides)
    return alignment(outputs, inputs, top=top).mean()


def fits(model: nn.Module, pair: Pair) -> bool:
    """Whether the layers of a pair can be compared: sizes that match, no groups."""
    writer, written = owner_of(model, pair.outputs)
    reader, read = owner_of(model, pair.inputs)
    first, second = current_matrix(writer, written), current_matrix(reader, read)
    if first.ndim > 2 or second.ndim > 2:
        return False
    outputs = first.shape[1] if isinstance(writer, nn.Embedding) else first.shape[0]
    if isinstance(writer, nn.RNNBase):
        outputs //= _gate_count(writer)
    if pair.part in ("query-key", "value"):
        heads = _heads(model, pair)
        if heads is None:
            return False
        if pair.outputs != pair.inputs and pair.part == "query-key":
            whole = len(first) % heads.own == 0 and len(second) % heads.shared == 0
            return whole and len(first) // heads.own == len(second) // heads.shared
        if not heads.fit(outputs):
            return False
        if pair.part == "query-key":
            return True
        outputs = outputs // (heads.own + 2 * heads.shared) * heads.own
    inputs = reader.in_channels if isinstance(reader, _CONVOLUTIONS) else second.shape[1]
    return outputs == (inputs // 2 if pair.part in ("forward", "backward") else inputs)


def owner_of(model: nn.Module, full_name: str) -> tuple[nn.Module, str]:
    """The layer that owns a weight, and the weight's name there.

    Raises:
        RequestError: no such weight, or one of fewer than two dimensions.
    """
    path, _, name = full_name.rpartition(".")
    try:
        module = model.get_submodule(path)
        matrix = current_matrix(module, name)
    except (AttributeError, KeyError, IndexError) as error:
        raise invalid("pairs", full_name, "the full name of a weight of the model") from error
    if matrix.ndim < 2:
        raise invalid("pairs", full_name, "a weight with two or more dimensions")
    return module, name


def _view(model: nn.Module, full_name: str, part: str, read: Callable[[], Tensor]) -> MatrixView:
    module, name = owner_of(model, full_name)
    return MatrixView(
        f"{full_name}[{part}]" if part else full_name, stored_dtype(module, name), read
    )


def _query_key(model: nn.Module, pair: Pair) -> tuple[Side, Side]:
    heads = _required_heads(model, pair)
    query = partial(_head_rows, model, pair.outputs, heads, "query", pair.outputs == pair.inputs)
    key = partial(_head_rows, model, pair.inputs, heads, "key", pair.outputs == pair.inputs)

    def repeated(found: Factors) -> Tensor:
        return found.left.repeat_interleave(heads.own // heads.shared, dim=0)

    return (
        Side(_view(model, pair.outputs, "query heads", query), lambda found: found.left),
        Side(_view(model, pair.inputs, "key heads", key), repeated),
    )


def _head_rows(
    model: nn.Module, full_name: str, heads: Heads, part: Literal["query", "key"], fused: bool
) -> Tensor:
    matrix = current_matrix(*owner_of(model, full_name))
    if fused:
        return projection(matrix, heads, part, per_head=True)
    split: Tensor = matrix.unflatten(0, (heads.own if part == "query" else heads.shared, -1))
    return split


def _value_output(model: nn.Module, pair: Pair, *, per_head: bool) -> tuple[Side, Side]:
    heads = _required_heads(model, pair)

    def values() -> Tensor:
        matrix = current_matrix(*owner_of(model, pair.outputs))
        own = projection(matrix, heads, "value", per_head=True)
        # What the output projection reads: each shared head as often as it is used.
        used = own.repeat_interleave(heads.own // heads.shared, dim=0)
        return used if per_head else used.flatten(0, 1)

    def output() -> Tensor:
        matrix = current_matrix(*owner_of(model, pair.inputs))
        return matrix.unflatten(1, (heads.own, -1)).transpose(0, 1) if per_head else matrix

    kinds = ("value heads", "read heads") if per_head else ("value", "")
    return (
        Side(_view(model, pair.outputs, kinds[0], values), lambda found: found.left),
        Side(_view(model, pair.inputs, kinds[1], output), lambda found: found.right),
    )


def _plain(model: nn.Module, full_name: str, part: Part, gate: int) -> tuple[Side, Side]:
    """A layer as one that writes and as one that reads."""
    module, name = owner_of(model, full_name)
    if current_matrix(module, name).ndim > 2:
        raise invalid("pairs", full_name, "layers without groups")
    if part and isinstance(module, _CONVOLUTIONS):
        raise invalid("pairs", full_name, "a linear or recurrent layer for a direction")

    def read() -> Tensor:
        matrix = current_matrix(*owner_of(model, full_name))
        return matrix.chunk(2, dim=1)[part == "backward"] if part else matrix

    def written(found: Factors) -> Tensor:
        if isinstance(module, nn.Embedding):
            return found.right
        if isinstance(module, nn.RNNBase):
            gates = _gate_count(module)
            return gate_directions(found.left, gate=gate if gates > 1 else 0, gates=gates)
        return found.left

    def taken(found: Factors) -> Tensor:
        if isinstance(module, nn.Embedding):
            return found.left
        if isinstance(module, _CONVOLUTIONS):
            return tap_directions(found.right, module.kernel_size)
        return found.right

    view = _view(model, full_name, part, read)
    return Side(view, written), Side(view, taken)


def _heads(model: nn.Module, pair: Pair) -> Heads | None:
    if pair.part == "query-key" and pair.outputs != pair.inputs:
        return own_heads(model, pair.outputs)
    return fused_heads(model, pair.outputs)


def _required_heads(model: nn.Module, pair: Pair) -> Heads:
    owner_of(model, pair.outputs)
    heads = _heads(model, pair)
    if heads is None:
        raise RequestError(
            f"pairs: got {pair.outputs!r} with a part of attention; expected a fused projection in "
            "a module that has its number of heads as heads, num_heads, n_head or n_heads"
        )
    return heads


def _gate_count(module: nn.RNNBase) -> int:
    return {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
