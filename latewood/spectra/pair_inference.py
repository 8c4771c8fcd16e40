"""Which layers of a model feed which, from the order in which they are registered."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import nn

from latewood.core.selection import WEIGHT_LAYERS, is_hugging_face_conv1d
from latewood.spectra.layer_pairs import LayerPair, PairPart
from latewood.spectra.matrices.attention import fused_layers, separate_layers
from latewood.spectra.pair_operands import fits

__all__ = ["infer_pairs"]


@dataclass
class _Stage:
    """Layers that run as one: what reads their input, what writes their output, pairs inside."""

    entries: list[str] = field(default_factory=list)
    exits: list[tuple[str, PairPart]] = field(default_factory=list)
    inner: list[LayerPair] = field(default_factory=list)


def infer_pairs(model: nn.Module) -> list[LayerPair]:
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
    pairs: list[LayerPair] = []
    before: list[tuple[str, PairPart]] = []
    for stage in _stages(model, ""):
        candidates = [
            LayerPair(name, entry, part) for name, part in before for entry in stage.entries
        ]
        pairs += [pair for pair in [*candidates, *stage.inner] if fits(model, pair)]
        # An embedding reads no layer; several of them feed the same next layer.
        before = stage.exits if stage.entries else [*before, *stage.exits]
    return pairs


def _stages(module: nn.Module, prefix: str) -> Iterator[_Stage]:
    if isinstance(module, nn.Embedding):
        yield _Stage(exits=[(prefix + "weight", "")])
    elif isinstance(module, nn.MultiheadAttention):
        yield _attention_stage(module, prefix)
    elif isinstance(module, nn.RNNBase):
        yield _recurrent_stage(module, prefix)
    elif isinstance(module, nn.RNNCellBase):
        yield _Stage(entries=[prefix + "weight_ih"])
    elif isinstance(module, WEIGHT_LAYERS) or is_hugging_face_conv1d(module):
        yield _Stage([prefix + "weight"], [(prefix + "weight", "")])
    elif fused := fused_layers(module):
        yield _fused_stage(*(f"{prefix}{name}.weight" for name in fused))
    elif separate := separate_layers(module):
        yield _separate_stage(*(f"{prefix}{name}.weight" for name in separate))
    else:
        for name, child in module.named_children():
            if name != "parametrizations":
                yield from _stages(child, f"{prefix}{name}.")


def _attention_stage(module: nn.MultiheadAttention, prefix: str) -> _Stage:
    output = prefix + "out_proj.weight"
    if module._qkv_same_embed_dim:
        return _fused_stage(prefix + "in_proj_weight", output)
    return _Stage([f"{prefix}{part}_proj_weight" for part in "qkv"], [(output, "")])


def _fused_stage(fused: str, output: str) -> _Stage:
    inner = [LayerPair(fused, fused, "query-key"), LayerPair(fused, output, "value")]
    return _Stage([fused], [(output, "")], inner)


def _separate_stage(query: str, key: str, value: str, output: str) -> _Stage:
    inner = [LayerPair(query, key, "query-key"), LayerPair(value, output)]
    return _Stage([query, key, value], [(output, "")], inner)


def _recurrent_stage(module: nn.RNNBase, prefix: str) -> _Stage:
    stage = _Stage()
    directions: list[tuple[str, PairPart]] = [("", "")]
    if module.bidirectional:
        directions = [("", "forward"), ("_reverse", "backward")]
    for suffix, part in directions:
        for layer in range(module.num_layers):
            ih, hh = (f"{prefix}weight_{kind}_l{layer}{suffix}" for kind in ("ih", "hh"))
            if layer == 0:
                stage.entries.append(ih)
            if layer == module.num_layers - 1:
                stage.exits += [(ih, part), (hh, part)]
                continue
            following = f"{prefix}weight_ih_l{layer + 1}{suffix}"
            stage.inner += [
                LayerPair(ih, hh),
                LayerPair(ih, following, part),
                LayerPair(hh, following, part),
            ]
    return stage
