"""Where a model keeps the queries, keys and values of its attention, and in how many heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor, nn

from latewood.core.selection import is_hugging_face_conv1d
from latewood.errors import invalid
from latewood.spectra.alignment import attention_projections

__all__ = [
    "KEY_VALUE_HEADS",
    "QUERY_HEADS",
    "Heads",
    "Projection",
    "SeparateLayers",
    "fused_heads",
    "fused_layers",
    "is_fused",
    "projection",
    "rows_by_head",
    "separate_layers",
    "surrounding_heads",
]

Projection = Literal["query", "key", "value"]

_STACKED: Final = ("in_proj", "c_attn", "qkv", "qkv_proj", "Wqkv")
"""Names of linear layers that hold queries, keys and values, one below the other."""

_BY_HEAD: Final = ("query_key_value",)
"""Those that hold, head after head, its queries, keys and values (GPT-NeoX, BLOOM, Falcon)."""

_SEPARATE: Final = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("query_proj", "key_proj", "value_proj"),
    ("q", "k", "v"),
    ("q_lin", "k_lin", "v_lin"),
    ("to_q", "to_k", "to_v"),
    ("wq", "wk", "wv"),
)
_OUTPUT: Final = ("o_proj", "out_proj", "o", "out_lin", "wo", "dense")

QUERY_HEADS: Final = ("heads", "num_heads", "n_head", "n_heads", "num_attention_heads")
"""Names under which modules and configurations have the number of heads."""

KEY_VALUE_HEADS: Final = (
    *("kv_heads", "num_key_value_heads", "num_kv_heads", "n_kv_heads", "n_kv_head"),
)
"""Those for the number of heads of keys and values."""

_ORDER = ("query", "key", "value")


@dataclass(frozen=True)
class Heads:
    """The heads of attention, and how a fused projection holds them.

    Args:
        query: heads of queries.
        key_value: heads of keys and of values, each used by ``query / key_value`` heads of queries.
        by_head: whether a fused projection goes head by head of the keys: its queries, its keys,
            its values, then those of the next; otherwise all queries come first.
    """

    query: int
    key_value: int
    by_head: bool = False

    def fit(self, rows: int) -> bool:
        """Whether a fused projection of so many rows can have these heads."""
        whole = rows % (self.query + 2 * self.key_value) == 0
        return whole and self.query % self.key_value == 0


@dataclass(frozen=True)
class SeparateLayers:
    """Names of the projections of an attention module inside it.

    Args:
        query: of the queries.
        key: of the keys.
        value: of the values.
        output: of what reads the heads; None where that is outside, as in BERT.
    """

    query: str
    key: str
    value: str
    output: str | None


def is_fused(layer: str) -> bool:
    """Whether a linear layer of this name, without its path, makes queries, keys and values."""
    return layer in _STACKED or layer in _BY_HEAD


def rows_by_head(layer: str) -> bool:
    """Whether a fused projection of this name holds the heads one after the other."""
    return layer in _BY_HEAD


def fused_heads(model: nn.Module, full_name: str) -> Heads | None:
    """The heads of a fused projection of attention.

    ``nn.MultiheadAttention`` knows them itself; for a linear layer with the name of a fused
    projection the module around it must, or that module's ``config``.

    Args:
        model: any module.
        full_name: of the parameter.

    Returns:
        The heads; None if this is no fused projection, or nobody knows its heads.
    """
    path, _, name = full_name.rpartition(".")
    module = model.get_submodule(path)
    if isinstance(module, nn.MultiheadAttention):
        count = module.num_heads
        return Heads(count, count) if name == "in_proj_weight" else None
    linear = isinstance(module, nn.Linear) or is_hugging_face_conv1d(module)
    around, _, layer = path.rpartition(".")
    if name != "weight" or not linear or not is_fused(layer):
        return None
    heads = _known_heads(model.get_submodule(around))
    if heads is None:
        return None
    return Heads(heads.query, heads.key_value, rows_by_head(layer))


def surrounding_heads(model: nn.Module, full_name: str) -> Heads | None:
    """The heads of the module around a separate projection; None if it does not know them."""
    return _known_heads(model.get_submodule(full_name.rpartition(".")[0].rpartition(".")[0]))


def fused_layers(module: nn.Module) -> tuple[str, str] | None:
    """The fused and the output projection among a module's layers, if it has just these."""
    if _known_heads(module) is None:
        return None
    linear = _linear_children(module)
    fused = [name for name in linear if is_fused(name)]
    if len(fused) != 1 or len(linear) != 2:
        return None
    linear.remove(fused[0])
    return fused[0], linear[0]


def separate_layers(module: nn.Module) -> SeparateLayers | None:
    """The projections of a module that makes queries, keys and values apart, by their names."""
    linear = _linear_children(module)
    names = next((names for names in _SEPARATE if set(names) <= set(linear)), None)
    if names is None or _known_heads(module) is None:
        return None
    output = next((name for name in _OUTPUT if name in linear and name not in names), None)
    return SeparateLayers(*names, output)


def projection(fused: Tensor, heads: Heads, part: Projection, *, per_head: bool) -> Tensor:
    """The rows of a fused projection that make queries, keys or values.

    Args:
        fused: (rows, n), in the order that ``heads`` says.
        heads: its heads.
        part: which.
        per_head: whether to give one matrix per head.

    Returns:
        (d, n), or (heads, d / heads, n).

    Raises:
        RequestError: the rows do not fit the heads.
    """
    if part not in _ORDER:
        raise invalid("part", part, f"one of {', '.join(_ORDER)}")
    if heads.by_head:
        fused = _queries_first(fused, heads)
    parts = attention_projections(fused, heads.query, kv_heads=heads.key_value)
    rows = parts[_ORDER.index(part)]
    return rows if per_head else rows.flatten(0, 1)


def _queries_first(fused: Tensor, heads: Heads) -> Tensor:
    """The rows of a projection that goes head by head, all queries first."""
    used = heads.query // max(1, heads.key_value)
    blocks = heads.key_value * (used + 2)
    if not heads.fit(len(fused)):
        raise invalid("fused", tuple(fused.shape), f"{blocks} x an integer rows")
    by_head = fused.unflatten(0, (heads.key_value, used + 2, -1))
    parts = (by_head[:, :used], by_head[:, used : used + 1], by_head[:, used + 1 :])
    return torch.cat([part.flatten(0, 2) for part in parts])


def _linear_children(module: nn.Module) -> list[str]:
    return [
        name
        for name, child in module.named_children()
        if isinstance(child, nn.Linear) or is_hugging_face_conv1d(child)
    ]


def _known_heads(module: nn.Module) -> Heads | None:
    count = _integer(module, QUERY_HEADS)
    return None if count is None else Heads(count, _integer(module, KEY_VALUE_HEADS) or count)


def _integer(owner: nn.Module, names: Sequence[str]) -> int | None:
    for holder in (owner, getattr(owner, "config", None)):
        for name in names:
            count = getattr(holder, name, None)
            if isinstance(count, int) and not isinstance(count, bool) and count > 0:
                return count
    return None
