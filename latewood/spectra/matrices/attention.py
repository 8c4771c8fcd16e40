"""Where a model keeps the queries, keys and values of its attention, and in how many heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from latewood.core.selection import is_hugging_face_conv1d
from latewood.errors import invalid
from latewood.spectra.alignment import attention_projections

__all__ = [
    "FUSED",
    "Heads",
    "Projection",
    "fused_heads",
    "fused_layers",
    "surrounding_heads",
    "projection",
    "separate_layers",
]

Projection = Literal["query", "key", "value"]

FUSED = ("in_proj", "c_attn", "qkv", "qkv_proj", "Wqkv")
"""Names of linear layers that hold queries, keys and values, one below the other."""

_QUERY_HEADS = ("heads", "num_heads", "n_head", "n_heads", "num_attention_heads")
_KEY_VALUE_HEADS = ("kv_heads", "num_key_value_heads", "num_kv_heads", "n_kv_heads", "n_kv_head")
_ORDER = ("query", "key", "value")


@dataclass(frozen=True)
class Heads:
    """The heads of one fused projection.

    Args:
        query: heads of queries.
        key_value: heads of keys and of values, each used by ``query / key_value`` heads of queries.
    """

    query: int
    key_value: int

    def fit(self, rows: int) -> bool:
        """Whether a fused projection of so many rows can have these heads."""
        whole = rows % (self.query + 2 * self.key_value) == 0
        return whole and self.query % self.key_value == 0


def fused_heads(model: nn.Module, full_name: str) -> Heads | None:
    """The heads of a fused projection of attention.

    ``nn.MultiheadAttention`` knows them itself; for a linear layer called by one of ``FUSED`` the
    module around it must, or that module's ``config``.

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
    if name != "weight" or not linear or layer not in FUSED:
        return None
    return _knsurrounding_heads(model.get_submodule(around))


def surrounding_heads(model: nn.Module, full_name: str) -> Heads | None:
    """The heads of the module around a separate projection; None if it does not know them."""
    return _knsurrounding_heads(
        model.get_submodule(full_name.rpartition(".")[0].rpartition(".")[0])
    )


def fused_layers(module: nn.Module) -> tuple[str, str] | None:
    """The fused and the output projection among a module's layers, if it has just these."""
    if _knsurrounding_heads(module) is None:
        return None
    linear = _linear_children(module)
    fused = [name for name in linear if name in FUSED]
    if len(fused) != 1 or len(linear) != 2:
        return None
    linear.remove(fused[0])
    return fused[0], linear[0]


def separate_layers(module: nn.Module) -> tuple[str, str, str, str] | None:
    """The query, key, value and output projections among a module's layers, by their names."""
    if _knsurrounding_heads(module) is None:
        return None
    linear = set(_linear_children(module))
    for output in ("o_proj", "out_proj"):
        if linear == {"q_proj", "k_proj", "v_proj", output}:
            return "q_proj", "k_proj", "v_proj", output
    return None


def projection(fused: Tensor, heads: Heads, part: Projection, *, per_head: bool) -> Tensor:
    """The rows of a fused projection that make queries, keys or values.

    Args:
        fused: (rows, n), queries first, then keys, then values.
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
    parts = attention_projections(fused, heads.query, kv_heads=heads.key_value)
    rows = parts[_ORDER.index(part)]
    return rows if per_head else rows.flatten(0, 1)


def _linear_children(module: nn.Module) -> list[str]:
    return [
        name
        for name, child in module.named_children()
        if isinstance(child, nn.Linear) or is_hugging_face_conv1d(child)
    ]


def _knsurrounding_heads(module: nn.Module) -> Heads | None:
    count = _integer(module, _QUERY_HEADS)
    return None if count is None else Heads(count, _integer(module, _KEY_VALUE_HEADS) or count)


def _integer(owner: nn.Module, names: tuple[str, ...]) -> int | None:
    for holder in (owner, getattr(owner, "config", None)):
        for name in names:
            count = getattr(holder, name, None)
            if isinstance(count, int) and not isinstance(count, bool) and count > 0:
                return count
    return None
