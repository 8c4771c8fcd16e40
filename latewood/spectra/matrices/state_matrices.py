"""The matrices of a checkpoint, as far as names and shapes tell, and what is left out, with why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from latewood.spectra.matrices.attention import Heads, is_fused, projection, rows_by_head
from latewood.spectra.matrices.lora import low_rank_product
from latewood.spectra.matrices.matrix_views import as_matrix, expert_matrices
from latewood.spectra.matrices.named_matrices import MatrixView, Views

__all__ = ["LeftOut", "StateMatrices", "state_matrices"]


@dataclass(frozen=True)
class LeftOut:
    """A tensor of two or more dimensions that is not measured, or not as it was asked for.

    Args:
        name: its name.
        shape: its shape.
        dtype: its dtype.
        why: the reason, in words.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    why: str


@dataclass(frozen=True)
class StateMatrices:
    """What a checkpoint holds.

    Args:
        matrices: in its order; tensors that share their memory once.
        left_out: those left out, and fused projections left whole.
    """

    matrices: list[MatrixView] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


def state_matrices(
    tensors: Mapping[str, Tensor],
    views: Views,
    *,
    heads: Heads | None = None,
    lora_scale: float = 1.0,
) -> StateMatrices:
    """The matrices of a state dict.

    Args:
        tensors: by name.
        views: how to look at them; ``include`` and ``exclude`` take names of tensors and of layers.
        heads: of the attention, which its configuration knows; with it projections are split whose
            parts are not equal, and those that go head by head.
        lora_scale: by which low-rank adapters count, in products.

    Raises:
        RequestError: "heads" or "merged", which need the model.
    """
    views.require_no_model()
    state = StateMatrices()
    seen: set[tuple[object, ...]] = set()
    for name, tensor in tensors.items():
        if tensor.ndim < 2 or not views.covers(name):
            continue
        if why := _no_matrix(tensor):
            state.left_out.append(LeftOut(name, tuple(tensor.shape), tensor.dtype, why))
            continue
        place = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape)
        if place in seen:
            continue
        seen.add(place)
        if views.lora == "product" and (pair := _low_rank_pair(name, tensors)) is not None:
            if "lora_A" in name:
                product = low_rank_product(*pair, scale=lora_scale)
                adapter = name.replace("lora_A", "lora")
                state.matrices.append(_fixed(adapter, product, tensor.dtype))
            continue
        if views.split == "qkv" and tensor.ndim == 2 and (layer := _fused_layer(name)):
            parts = _split(tensor, layer, heads)
            if parts is not None:
                state.matrices.extend(
                    _fixed(f"{name}[{part}]", rows, tensor.dtype) for part, rows in parts
                )
                continue
            why = f"left whole: {_why_whole(layer, heads)}"
            state.left_out.append(LeftOut(name, tuple(tensor.shape), tensor.dtype, why))
        state.matrices.append(_fixed(name, _matrix(name, tensor, views), tensor.dtype))
    return state


def _no_matrix(tensor: Tensor) -> str:
    """Why a tensor is no matrix to decompose; "" if it is one."""
    if tensor.layout != torch.strided:
        return f"stored as {str(tensor.layout).removeprefix('torch.')}, not as a whole"
    if tensor.is_meta:
        return "without its values"
    if tensor.is_complex():
        return "complex entries"
    if not tensor.is_floating_point():
        return "integers: codes of a number format, or counters"
    return "" if tensor.numel() else "no entries"


def _matrix(name: str, tensor: Tensor, views: Views) -> Tensor:
    if (experts := expert_matrices(name, tensor)) is not None:
        return experts
    if views.conv == "taps" and tensor.ndim > 2:
        return tensor.flatten(2).movedim(-1, 0)
    return as_matrix(tensor)


def _fused_layer(name: str) -> str:
    """The layer's name without its path where it is a fused projection; "" otherwise."""
    path, _, last = name.rpartition(".")
    layer = path.rpartition(".")[2] if last == "weight" else last.removesuffix("_weight")
    return layer if is_fused(layer) else ""


def _split(tensor: Tensor, layer: str, heads: Heads | None) -> Iterator[tuple[str, Tensor]] | None:
    """Queries, keys and values of a fused projection; None where nobody can tell."""
    # Hugging Face's c_attn stores (in, out).
    fused = tensor.mT if layer == "c_attn" and tensor.shape[0] < tensor.shape[1] else tensor
    if heads is None:
        if rows_by_head(layer) or fused.shape[0] != 3 * fused.shape[1]:
            return None
        return zip(("query", "key", "value"), fused.chunk(3), strict=True)
    known = Heads(heads.query, heads.key_value, rows_by_head(layer))
    if not known.fit(len(fused)):
        return None
    return (
        (part, projection(fused, known, part, per_head=False)) for part in ("query", "key", "value")
    )


def _why_whole(layer: str, heads: Heads | None) -> str:
    if heads is None:
        return "the number of its heads is unknown without a config.json"
    return f"its rows do not fit {heads.query} and {heads.key_value} heads"


def _fixed(name: str, matrix: Tensor, dtype: torch.dtype) -> MatrixView:
    return MatrixView(name, dtype, lambda: matrix)


def _low_rank_pair(name: str, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor] | None:
    """The factors (A, B) that a name is one of, if both are there and can be multiplied."""
    down = tensors.get(name.replace("lora_B", "lora_A"))
    up = tensors.get(name.replace("lora_A", "lora_B"))
    if down is None or up is None or down is up or not down.ndim == up.ndim == 2:
        return None
    return (down, up) if up.shape[1] == down.shape[0] else None
