"""Which layers of a model feed which, and the alignment of each such pair."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from torch import nn

from latewood.core.selection import WEIGHT_LAYERS
from latewood.errors import invalid
from latewood.spectra.alignment import Alignment
from latewood.spectra.matrices.attention import fused_layers, separate_layers
from latewood.spectra.matrices.matrix_views import is_hugging_face_conv1d
from latewood.spectra.pair_operands import Pair, Part, fits, pair_sides, sides_alignment
from latewood.spectra.solvers.leading_vectors import Factors, factors

__all__ = ["Pair", "Part", "as_pair", "infer_pairs", "model_alignment"]


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
        pairs += [pair for pair in [*candidates, *node.inner] if fits(model, pair)]
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
    chosen = infer_pairs(model) if pairs is None else [as_pair(pair) for pair in pairs]
    found: dict[str, Factors] = {}
    results: dict[str, Alignment] = {}
    for pair in chosen:
        sides = pair_sides(model, pair, gate=gate, per_head=per_head)
        for side in sides:
            if side.view.name not in found:
                found[side.view.name] = factors(side.view.read(), k)
        results[pair.name] = sides_alignment(sides, found, top=top)
    return results


def as_pair(pair: Pair | tuple[str, str]) -> Pair:
    """A pair from one, or from two names.

    Raises:
        RequestError: neither.
    """
    if isinstance(pair, Pair):
        return pair
    if isinstance(pair, str) or len(pair) != 2:
        raise invalid("pairs", pair, "tuples of two names, (outputs, inputs)")
    return Pair(*pair)


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
    elif fused := fused_layers(module):
        yield _fused_node(*(f"{prefix}{name}.weight" for name in fused))
    elif separate := separate_layers(module):
        yield _separate_node(*(f"{prefix}{name}.weight" for name in separate))
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


def _separate_node(query: str, key: str, value: str, output: str) -> _Node:
    inner = [Pair(query, key, "query-key"), Pair(value, output)]
    return _Node([query, key, value], [(output, "")], inner)


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
