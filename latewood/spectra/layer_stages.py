"""Layers that run as one, found by their kinds and names: attention, gates, experts, recurrence."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from torch import nn

from latewood.core.selection import WEIGHT_LAYERS, is_hugging_face_conv1d
from latewood.spectra.layer_pairs import LayerPair, PairPart
from latewood.spectra.matrices.attention import (
    SeparateLayers,
    fused_layers,
    separate_layers,
    surrounding_heads,
)

__all__ = ["Stage", "Writer", "chained", "model_stages", "runs_as_registered", "stage_of"]

Writer = tuple[str, PairPart]
"""A weight that writes, and the part of the pair that it makes with what reads it."""

_GATED: Final = (("gate_proj", "up_proj"), ("w1", "w3"), ("wi_0", "wi_1"))
_FUSED_GATE: Final = "gate_up_proj"
_EXPERTS: Final = "experts"
_ROUTERS: Final = ("gate", "router")


@dataclass
class Stage:
    """Layers that run as one.

    Args:
        entries: weights that read its input; none for an embedding.
        exits: weights that write its output.
        inner: pairs inside.
    """

    entries: list[str] = field(default_factory=list)
    exits: list[Writer] = field(default_factory=list)
    inner: list[LayerPair] = field(default_factory=list)


def model_stages(model: nn.Module) -> Iterator[Stage]:
    """The stages of a model in the order in which they are registered."""
    return _stages(model, model, "")


def stage_of(model: nn.Module, module: nn.Module, prefix: str) -> Stage | None:
    """The stage of a layer that has several weights of its own; None for others.

    Args:
        model: the model.
        module: a layer of it.
        prefix: of the names of its parameters.
    """
    if isinstance(module, nn.MultiheadAttention):
        return _attention_stage(module, prefix)
    if isinstance(module, nn.RNNBase):
        return _recurrent_stage(module, prefix)
    if isinstance(module, nn.RNNCellBase):
        return Stage(entries=[prefix + "weight_ih"])
    return None


def chained(stages: Iterable[Stage]) -> Stage:
    """Stages that run one after the other, as one; embeddings in front feed the first."""
    whole = Stage()
    before: list[Writer] = []
    for stage in stages:
        if not whole.entries:
            whole.entries = stage.entries
        whole.inner += [LayerPair(name, entry, p) for name, p in before for entry in stage.entries]
        whole.inner += stage.inner
        # An embedding reads no layer; several of them feed the same next layer.
        before = stage.exits if stage.entries else [*before, *stage.exits]
    whole.exits = before
    return whole


def runs_as_registered(model: nn.Module) -> bool:
    """Whether the order of registration is that of the run: layers only in ``nn.Sequential``."""
    if _is_layer(model):
        return True
    children = [child for child in model.children() if _holds_layers(child)]
    ordered = isinstance(model, nn.Sequential) or len(children) < 2
    return ordered and all(runs_as_registered(child) for child in children)


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, (*WEIGHT_LAYERS, nn.Embedding)) or is_hugging_face_conv1d(module)


def _holds_layers(module: nn.Module) -> bool:
    return any(_is_layer(inner) for inner in module.modules())


def _stages(model: nn.Module, module: nn.Module, prefix: str) -> Iterator[Stage]:
    if isinstance(module, nn.Embedding):
        yield Stage(exits=[(prefix + "weight", "")])
    elif (stage := stage_of(model, module, prefix)) is not None:
        yield stage
    elif _is_layer(module):
        yield Stage([prefix + "weight"], [(prefix + "weight", "")])
    elif fused := fused_layers(module):
        yield _fused_stage(*(f"{prefix}{name}.weight" for name in fused))
    elif separate := separate_layers(module):
        yield _separate_stage(model, prefix, separate)
    elif _EXPERTS in module._modules:
        yield _expert_stage(model, module, prefix)
    elif _is_stack(module):
        gate_up, down = f"{prefix}{_FUSED_GATE}", f"{prefix}down_proj"
        yield chained([_fused_gate(gate_up), Stage([down], [(down, "")])])
    else:
        yield from _children(model, module, prefix)


def _children(model: nn.Module, module: nn.Module, prefix: str) -> Iterator[Stage]:
    """Stages of the children in order, those of a gate and what it gates at once."""
    children = {
        n: c for n, c in module._modules.items() if c is not None and n != "parametrizations"
    }
    gated = next((both for both in _GATED if all(name in children for name in both)), ())
    for name, child in children.items():
        if gated and name == gated[0]:
            weights = [f"{prefix}{part}.weight" for part in gated]
            yield Stage(weights, [(weight, "") for weight in weights])
        elif name == _FUSED_GATE and isinstance(child, nn.Linear):
            yield _fused_gate(f"{prefix}{name}.weight")
        elif name not in gated:
            yield from _stages(model, child, f"{prefix}{name}.")


def _fused_gate(weight: str) -> Stage:
    return Stage([weight], [(weight, "gate"), (weight, "up")])


def _is_stack(module: nn.Module) -> bool:
    """Whether a module holds the matrices of all experts as two parameters of its own."""
    parameters = [module._parameters.get(name) for name in (_FUSED_GATE, "down_proj")]
    return all(weight is not None and weight.ndim == 3 for weight in parameters)


def _expert_stage(model: nn.Module, module: nn.Module, prefix: str) -> Stage:
    """Experts, and those that see everything, side by side; a router only reads."""
    whole = Stage()
    for name, child in module.named_children():
        inner = f"{prefix}{name}."
        experts = isinstance(child, nn.ModuleList | nn.ModuleDict) and name == _EXPERTS
        branches = (
            [(f"{inner}{number}.", expert) for number, expert in child.named_children()]
            if experts
            else [(inner, child)]
        )
        for path, branch in branches:
            stage = chained(_stages(model, branch, path))
            whole.entries += stage.entries
            whole.inner += stage.inner
            whole.exits += [] if name in _ROUTERS else stage.exits
    return whole


def _attention_stage(module: nn.MultiheadAttention, prefix: str) -> Stage:
    output = prefix + "out_proj.weight"
    if module._qkv_same_embed_dim:
        return _fused_stage(prefix + "in_proj_weight", output)
    return Stage([f"{prefix}{part}_proj_weight" for part in "qkv"], [(output, "")])


def _fused_stage(fused: str, output: str) -> Stage:
    inner = [LayerPair(fused, fused, "query-key"), LayerPair(fused, output, "value")]
    return Stage([fused], [(output, "")], inner)


def _separate_stage(model: nn.Module, prefix: str, layers: SeparateLayers) -> Stage:
    query, key, value = (
        f"{prefix}{name}.weight" for name in (layers.query, layers.key, layers.value)
    )
    heads = surrounding_heads(model, value)
    shared = heads is not None and heads.key_value < heads.query
    part: PairPart = "value" if shared else ""
    stage = Stage([query, key, value], [(value, part)], [LayerPair(query, key, "query-key")])
    if layers.output is not None:
        output = f"{prefix}{layers.output}.weight"
        stage.inner.append(LayerPair(value, output, part))
        stage.exits = [(output, "")]
    return stage


def _recurrent_stage(module: nn.RNNBase, prefix: str) -> Stage:
    stage = Stage()
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
