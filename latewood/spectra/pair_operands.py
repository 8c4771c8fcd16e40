"""The two matrices that a pair of layers compares, and which of their directions meet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from latewood.errors import RequestError, invalid, listed
from latewood.spectra.alignment import Alignment, alignment, gate_directions, tap_directions
from latewood.spectra.layer_pairs import LayerPair, PairPart
from latewood.spectra.matrices.attention import (
    QUERY_HEADS,
    Heads,
    Projection,
    fused_heads,
    is_fused,
    projection,
    surrounding_heads,
)
from latewood.spectra.matrices.matrix_views import CONVOLUTIONS
from latewood.spectra.matrices.named_matrices import MatrixView
from latewood.spectra.matrices.weights import current_matrix, stored_dtype
from latewood.spectra.solvers.leading_vectors import Factors

__all__ = ["Operands", "PairOperand", "fits", "operands_alignment", "pair_operands"]


@dataclass(frozen=True)
class PairOperand:
    """What one layer of a pair contributes.

    Args:
        view: the matrix, or batch of matrices, to decompose.
        directions: picks the directions that meet the other operand's from the decomposition,
            (..., d, k).
    """

    view: MatrixView
    directions: Callable[[Factors], Tensor]


Operands = tuple[PairOperand, PairOperand]
"""The one that writes, and the one that reads."""


def pair_operands(
    model: nn.Module, pair: LayerPair, *, gate: int = 2, per_head: bool = False
) -> Operands:
    """The operand that writes and the operand that reads.

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
    written: PairPart = pair.part if pair.part in ("gate", "up") else ""
    read: PairPart = pair.part if pair.part in ("forward", "backward") else ""
    return _layer(model, pair.outputs, written, gate)[0], _layer(model, pair.inputs, read, gate)[1]


def operands_alignment(
    operands: Operands, decomposed: Mapping[str, Factors], *, top: int = 10
) -> Alignment:
    """The alignment of two operands whose matrices are decomposed, averaged over heads.

    Args:
        operands: as ``pair_operands`` gives them.
        decomposed: factors by the name of the view.
        top: entries of the diagonal that the score averages.

    Raises:
        RequestError: layers that do not fit each other.
    """
    outputs, inputs = (operand.directions(decomposed[operand.view.name]) for operand in operands)
    return alignment(outputs, inputs, top=top).mean()


def fits(model: nn.Module, pair: LayerPair) -> bool:
    """Whether the layers of a pair can be compared: sizes that match, no groups."""
    writer, written = _owner_of(model, pair.outputs)
    reader, read = _owner_of(model, pair.inputs)
    first, second = current_matrix(writer, written), current_matrix(reader, read)
    if _has_groups(writer, first) or _has_groups(reader, second):
        return False
    if first.ndim == second.ndim == 3 and len(first) != len(second):
        return False
    if pair.part in ("query-key", "value"):
        return first.ndim == second.ndim == 2 and _heads_fit(model, pair, first, second)
    outputs = first.shape[-1] if isinstance(writer, nn.Embedding) else first.shape[-2]
    if isinstance(writer, nn.RNNBase):
        outputs //= _gate_count(writer)
    inputs = reader.in_channels if isinstance(reader, CONVOLUTIONS) else second.shape[-1]
    if pair.part in ("gate", "up"):
        return outputs % 2 == 0 and outputs // 2 == inputs
    return outputs == (inputs // 2 if pair.part in ("forward", "backward") else inputs)


def _heads_fit(model: nn.Module, pair: LayerPair, first: Tensor, second: Tensor) -> bool:
    heads = _heads(model, pair)
    if heads is None:
        return False
    if _is_fused(model, pair.outputs):
        if not heads.fit(len(first)):
            return False
        size = len(first) // (heads.query + 2 * heads.key_value)
        return pair.part == "query-key" or size * heads.query == second.shape[1]
    count = heads.query if pair.part == "query-key" else heads.key_value
    if len(first) % count or heads.query % heads.key_value:
        return False
    size = len(first) // count
    if pair.part == "value":
        return size * heads.query == second.shape[1]
    return size * heads.key_value == len(second)


def _has_groups(module: nn.Module, matrix: Tensor) -> bool:
    """Whether a layer's matrices read different channels each, unlike those of experts."""
    return matrix.ndim > 2 and isinstance(module, CONVOLUTIONS)


def _owner_of(model: nn.Module, full_name: str) -> tuple[nn.Module, str]:
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
    module, name = _owner_of(model, full_name)
    return MatrixView(
        f"{full_name}[{part}]" if part else full_name, stored_dtype(module, name), read
    )


def _query_key(model: nn.Module, pair: LayerPair) -> Operands:
    heads = _required_heads(model, pair)
    query = partial(_head_rows, model, pair.outputs, heads, "query", pair.outputs == pair.inputs)
    key = partial(_head_rows, model, pair.inputs, heads, "key", pair.outputs == pair.inputs)

    def repeated(decomposed: Factors) -> Tensor:
        return decomposed.left.repeat_interleave(heads.query // heads.key_value, dim=0)

    return (
        PairOperand(_view(model, pair.outputs, "query heads", query), _left),
        PairOperand(_view(model, pair.inputs, "key heads", key), repeated),
    )


def _head_rows(
    model: nn.Module, full_name: str, heads: Heads, part: Projection, fused: bool
) -> Tensor:
    matrix = current_matrix(*_owner_of(model, full_name))
    if fused:
        return projection(matrix, heads, part, per_head=True)
    count = heads.query if part == "query" else heads.key_value
    split: Tensor = matrix.unflatten(0, (count, -1))
    return split


def _value_output(model: nn.Module, pair: LayerPair, *, per_head: bool) -> Operands:
    heads = _required_heads(model, pair)

    fused = _is_fused(model, pair.outputs)

    def values() -> Tensor:
        values_of_heads = _head_rows(model, pair.outputs, heads, "value", fused)
        # What the output projection reads: each shared head as often as it is used.
        used = values_of_heads.repeat_interleave(heads.query // heads.key_value, dim=0)
        return used if per_head else used.flatten(0, 1)

    def output() -> Tensor:
        matrix = current_matrix(*_owner_of(model, pair.inputs))
        return matrix.unflatten(1, (heads.query, -1)).transpose(0, 1) if per_head else matrix

    kinds = ("value heads", "read heads") if per_head else ("value", "")
    return (
        PairOperand(_view(model, pair.outputs, kinds[0], values), _left),
        PairOperand(_view(model, pair.inputs, kinds[1], output), _right),
    )


def _layer(model: nn.Module, full_name: str, part: PairPart, gate: int) -> Operands:
    """A layer as one that writes and as one that reads; all experts of a stack at once."""
    module, name = _owner_of(model, full_name)
    if _has_groups(module, current_matrix(module, name)):
        raise invalid("pairs", full_name, "layers without groups")
    if part and isinstance(module, CONVOLUTIONS):
        raise invalid("pairs", full_name, "a linear or recurrent layer for a direction or part")

    def read() -> Tensor:
        matrix = current_matrix(*_owner_of(model, full_name))
        if part in ("gate", "up"):
            return matrix.chunk(2, dim=-2)[part == "up"]
        return matrix.chunk(2, dim=-1)[part == "backward"] if part else matrix

    def written_directions(decomposed: Factors) -> Tensor:
        if isinstance(module, nn.Embedding):
            return decomposed.right
        if isinstance(module, nn.RNNBase):
            gates = _gate_count(module)
            return gate_directions(decomposed.left, gate=gate if gates > 1 else 0, gates=gates)
        return decomposed.left

    def read_directions(decomposed: Factors) -> Tensor:
        # An embedding reads where it is tied to a head.
        if isinstance(module, CONVOLUTIONS):
            return tap_directions(decomposed.right, module.kernel_size)
        return decomposed.right

    view = _view(model, full_name, part, read)
    return PairOperand(view, written_directions), PairOperand(view, read_directions)


def _heads(model: nn.Module, pair: LayerPair) -> Heads | None:
    if _is_fused(model, pair.outputs):
        return fused_heads(model, pair.outputs)
    return surrounding_heads(model, pair.outputs)


def _is_fused(model: nn.Module, full_name: str) -> bool:
    path, _, name = full_name.rpartition(".")
    if isinstance(model.get_submodule(path), nn.MultiheadAttention):
        return name == "in_proj_weight"
    return is_fused(path.rpartition(".")[2])


def _required_heads(model: nn.Module, pair: LayerPair) -> Heads:
    _owner_of(model, pair.outputs)
    heads = _heads(model, pair)
    if heads is None:
        raise RequestError(
            f"pairs: got {pair.outputs!r} with a part of attention; expected a projection in a "
            f"module that has its number of heads as {listed(QUERY_HEADS)}"
        )
    return heads


def _left(decomposed: Factors) -> Tensor:
    return decomposed.left


def _right(decomposed: Factors) -> Tensor:
    return decomposed.right


def _gate_count(module: nn.RNNBase) -> int:
    return {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
