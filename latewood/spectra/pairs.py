"""Which layers of a model feed which, and the alignment of each such pair."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from latewood.core.selection import WEIGHT_LAYERS
from latewood.errors import RequestError, invalid
from latewood.spectra.alignment import (
    Alignment,
    alignment,
    gate_directions,
    query_key_alignment,
    tap_directions,
    value_output_alignment,
)
from latewood.spectra.factors import factors
from latewood.spectra.views import is_hugging_face_conv1d
from latewood.spectra.weights import current_matrix

__all__ = ["Pair", "Part", "infer_pairs", "model_alignment"]

Part = Literal["", "query-key", "value", "forward", "backward"]

_CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
_FUSED = ("in_proj", "c_attn", "qkv")
_HEADS = ("heads", "num_heads", "n_head", "n_heads")


@dataclass(frozen=True)
class Pair:
    """Two weights of which the second reads what the first writes.

    Args:
        outputs: full name of the parameter that writes.
        inputs: full name of the parameter that reads.
        part: "query-key" compares the two inside ``outputs``, a fused projection of attention;
            "value" takes its last third; "forward" and "backward" take that half of the columns of
            ``inputs``, which reads both directions of a bidirectional layer.
    """

    outputs: str
    inputs: str
    part: Part = ""

    @property
    def name(self) -> str:
        """The pair in one word, for tables and plots."""
        if self.part == "query-key":
            return f"{self.outputs}[query->key]"
        first = f"{self.outputs}[value]" if self.part == "value" else self.outputs
        half = f"[{self.part}]" if self.part in ("forward", "backward") else ""
        return f"{first}->{self.inputs}{half}"


@dataclass
class _Node:
    entries: list[str] = field(default_factory=list)
    exits: list[tuple[str, Part]] = field(default_factory=list)
    inner: list[Pair] = field(default_factory=list)


def infer_pairs(model: nn.Module) -> list[Pair]:
    """The pairs of a model whose layers are registered in the order in which they run.

    That holds for multilayer perceptrons, VGGs, recurrent networks and Transformers (residual
    connections are ignored); for others, list the pairs yourself. Attention, fused or as
    ``nn.MultiheadAttention``, gives query-key and value-output pairs; a recurrent layer gives
    input-to-state and input- and state-to-next-layer in each direction. Layers that do not fit each
    other, and grouped convolutions, are left out.

    Args:
        model: any module.

    Returns:
        The pairs, in order of the model.

    Source: arXiv 2408.11804, section 3, and its released code.
    """
    pairs: list[Pair] = []
    before: list[tuple[str, Part]] = []
    for node in _nodes(model, ""):
        candidates = [Pair(name, entry, part) for name, part in before for entry in node.entries]
        pairs += [pair for pair in [*candidates, *node.inner] if _fits(model, pair)]
        # An embedding reads no layer; several of them feed the same next layer.
        before = node.exits if node.entries else [*before, *node.exits]
    return pairs


def model_alignment(
    model: nn.Module,
    pairs: Sequence[Pair | tuple[str, str]] | None = None,
    *,
    k: int | None = 100,
    gate: int = 2,
    per_head: bool = False,
    top: int = 10,
) -> dict[str, Alignment]:
    """The alignment of every pair of consecutive layers, each by the rule of its kind.

    Convolutions are read at the centre tap, recurrent layers written at one gate, embeddings
    written by their columns; query and key are compared per head and averaged.

    Args:
        model: any module, with or without transformations on its weights.
        pairs: which; ``infer_pairs(model)`` if None. A tuple is (outputs, inputs).
        k: number of vectors; None for all.
        gate: which gate of recurrent layers, see ``gate_directions``.
        per_head: compare values and output projections head by head and average.
        top: entries of the diagonal that the score averages.

    Returns:
        Alignments by ``Pair.name``, without leading dimensions.

    Raises:
        RequestError: no pair of names, a name that is not a matrix of the model, layers that do not
            fit, or a grouped convolution.
    """
    chosen = infer_pairs(model) if pairs is None else [_as_pair(pair) for pair in pairs]
    measure = _Measure(model, k, gate, per_head, top)
    return {pair.name: measure(pair) for pair in chosen}


class _Measure:
    """Alignments of one model, each weight decomposed once."""

    def __init__(
        self, model: nn.Module, k: int | None, gate: int, per_head: bool, top: int
    ) -> None:
        self.model, self.k, self.gate, self.per_head, self.top = model, k, gate, per_head, top
        self.known: dict[tuple[str, Part], tuple[Tensor, Tensor]] = {}

    def __call__(self, pair: Pair) -> Alignment:
        if pair.part in ("query-key", "value"):
            return self._attention(pair).mean()
        outputs = self._directions(pair.outputs, "")[0]
        inputs = self._directions(pair.inputs, pair.part)[1]
        return alignment(outputs, inputs, top=self.top)

    def _attention(self, pair: Pair) -> Alignment:
        owner, name = _owner(self.model, pair.outputs)
        heads = _head_count(self.model, pair.outputs)
        fused = current_matrix(owner, name)
        if pair.part == "query-key":
            return query_key_alignment(fused, heads, k=self.k, top=self.top)
        output = current_matrix(*_owner(self.model, pair.inputs))
        chosen = heads if self.per_head else None
        return value_output_alignment(fused, output, chosen, k=self.k, top=self.top)

    def _directions(self, full_name: str, part: Part) -> tuple[Tensor, Tensor]:
        if (full_name, part) not in self.known:
            self.known[full_name, part] = self._decomposed(full_name, part)
        return self.known[full_name, part]

    def _decomposed(self, full_name: str, part: Part) -> tuple[Tensor, Tensor]:
        module, name = _owner(self.model, full_name)
        matrix = current_matrix(module, name)
        if matrix.ndim > 2:
            raise invalid("pairs", full_name, "layers without groups")
        if part:
            if isinstance(module, _CONVOLUTIONS):
                raise invalid("pairs", full_name, "a linear or recurrent layer for a direction")
            matrix = matrix.chunk(2, dim=1)[part == "backward"]
        found = factors(matrix, self.k)
        left, right = found.left, found.right
        if isinstance(module, nn.Embedding):
            return right, left
        if isinstance(module, nn.RNNBase):
            gates = _gate_count(module)
            left = gate_directions(left, gate=self.gate if gates > 1 else 0, gates=gates)
        if isinstance(module, _CONVOLUTIONS):
            right = tap_directions(right, module.kernel_size)
        return left, right


def _nodes(module: nn.Module, prefix: str) -> Iterator[_Node]:
    if isinstance(module, nn.Embedding):
        yield _Node(exits=[(prefix + "weight", "")])
    elif isinstance(module, nn.MultiheadAttention):
        yield _attention_node(module, prefix)
    elif isinstance(module, nn.RNNBase):
        yield _recurrent_node(module, prefix)
    elif isinstance(module, nn.RNNCellBase):
        yield _Node(entries=[prefix + "weight_ih"])
    elif isinstance(module, WEIGHT_LAYERS) or is_hugging_face_conv1d(module):
        yield _Node([prefix + "weight"], [(prefix + "weight", "")])
    elif fused := _fused_attention(module):
        yield _fused_node(*(f"{prefix}{name}.weight" for name in fused))
    else:
        for name, child in module.named_children():
            if name != "parametrizations":
                yield from _nodes(child, f"{prefix}{name}.")


def _attention_node(module: nn.MultiheadAttention, prefix: str) -> _Node:
    output = prefix + "out_proj.weight"
    if module._qkv_same_embed_dim:
        return _fused_node(prefix + "in_proj_weight", output)
    return _Node([f"{prefix}{part}_proj_weight" for part in "qkv"], [(output, "")])


def _fused_node(fused: str, output: str) -> _Node:
    inner = [Pair(fused, fused, "query-key"), Pair(fused, output, "value")]
    return _Node([fused], [(output, "")], inner)


def _recurrent_node(module: nn.RNNBase, prefix: str) -> _Node:
    node = _Node()
    directions: list[tuple[str, Part]] = [("", "")]
    if module.bidirectional:
        directions = [("", "forward"), ("_reverse", "backward")]
    for suffix, part in directions:
        for layer in range(module.num_layers):
            ih, hh = (f"{prefix}weight_{kind}_l{layer}{suffix}" for kind in ("ih", "hh"))
            if layer == 0:
                node.entries.append(ih)
            if layer == module.num_layers - 1:
                node.exits += [(ih, part), (hh, part)]
                continue
            following = f"{prefix}weight_ih_l{layer + 1}{suffix}"
            node.inner += [Pair(ih, hh), Pair(ih, following, part), Pair(hh, following, part)]
    return node


def _fused_attention(module: nn.Module) -> tuple[str, str] | None:
    """The fused and the output projection of a module that knows its number of heads."""
    if not any(isinstance(getattr(module, name, None), int) for name in _HEADS):
        return None
    linear = [
        name
        for name, child in module.named_children()
        if isinstance(child, nn.Linear) or is_hugging_face_conv1d(child)
    ]
    fused = [name for name in linear if name in _FUSED]
    if len(fused) != 1 or len(linear) != 2:
        return None
    linear.remove(fused[0])
    return fused[0], linear[0]


def _fits(model: nn.Module, pair: Pair) -> bool:
    writer, written = _owner(model, pair.outputs)
    reader, read = _owner(model, pair.inputs)
    first, second = current_matrix(writer, written), current_matrix(reader, read)
    if first.ndim > 2 or second.ndim > 2:
        return False
    outputs = first.shape[1] if isinstance(writer, nn.Embedding) else first.shape[0]
    if isinstance(writer, nn.RNNBase):
        outputs //= _gate_count(writer)
    if pair.part == "query-key":
        return outputs % (3 * _head_count(model, pair.outputs)) == 0
    if pair.part == "value":
        outputs //= 3
    inputs = reader.in_channels if isinstance(reader, _CONVOLUTIONS) else second.shape[1]
    return outputs == (inputs // 2 if pair.part in ("forward", "backward") else inputs)


def _owner(model: nn.Module, full_name: str) -> tuple[nn.Module, str]:
    path, _, name = full_name.rpartition(".")
    try:
        module = model.get_submodule(path)
        matrix = current_matrix(module, name)
    except (AttributeError, KeyError, IndexError) as error:
        raise invalid("pairs", full_name, "the full name of a weight of the model") from error
    if matrix.ndim < 2:
        raise invalid("pairs", full_name, "a weight with two or more dimensions")
    return module, name


def _head_count(model: nn.Module, full_name: str) -> int:
    # The layer itself for nn.MultiheadAttention, the module around it for a fused linear layer.
    path = full_name.rpartition(".")[0]
    for owner in (path, path.rpartition(".")[0]):
        module = model.get_submodule(owner)
        for name in _HEADS:
            if isinstance(count := getattr(module, name, None), int):
                return count
    raise RequestError(
        f"pairs: got {full_name!r} with a part of attention; expected a layer in a module that has "
        f"its number of heads as {', '.join(_HEADS)}"
    )


def _gate_count(module: nn.RNNBase) -> int:
    return {"LSTM": 4, "GRU": 3}.get(module.mode, 1)


def _as_pair(pair: Pair | tuple[str, str]) -> Pair:
    if isinstance(pair, Pair):
        return pair
    if isinstance(pair, str) or len(pair) != 2:
        raise invalid("pairs", pair, "tuples of two names, (outputs, inputs)")
    return Pair(*pair)
