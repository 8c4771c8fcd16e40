"""One row of numbers for every weight matrix of a model, or of a checkpoint without its code."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from latewood.spectra.baselines import random_effective_rank
from latewood.spectra.matrices.lora import low_rank_product
from latewood.spectra.matrices.matrix_views import as_matrix, expert_matrices
from latewood.spectra.matrices.named_matrices import Conv, Lora, MatrixView, Split, Views
from latewood.spectra.measures import effective_rank, stable_rank
from latewood.spectra.solvers.error_bounds import rank_error
from latewood.spectra.solvers.leading_vectors import factors

__all__ = ["COLUMNS", "analyze", "matrix_row", "state_views"]

COLUMNS = (
    "name",
    "shape",
    "rank",
    "effective rank",
    "of random",
    "error",
    "stable rank",
    "largest",
    "smallest",
    "density",
    "method",
    "dtype",
)
"""The columns of the table: see ``matrix_row``."""

Track = Callable[[Iterable[Any], int], Iterator[Any]]

_FUSED = ("in_proj_weight", "c_attn.weight", "qkv.weight", "qkv_proj.weight", "Wqkv.weight")


def analyze(
    source: nn.Module | Mapping[str, Tensor],
    *,
    split: Split = "fused",
    conv: Conv = "flatten",
    lora: Lora = "factors",
    track: Track | None = None,
) -> list[dict[str, object]]:
    """Measures every weight matrix of a model, or of a state dict as far as names and shapes tell.

    Args:
        source: a module; or tensors by name, of which those with two or more dimensions and
            floating-point entries count, the first dimension as the output.
        split: see ``Views``. Without a model "heads" are unknown; a fused projection of three equal
            parts can be split as "qkv".
        conv: see ``Views``.
        lora: see ``Views``. Without a model "merged" is unknown, and a "product" has no scale.
        track: shows progress over so many matrices.

    Returns:
        One row per matrix in the source's order, tied ones once; [] if there are none.

    Raises:
        RequestError: an unknown choice, or one that needs the model.
    """
    chosen = Views(split=split, conv=conv, lora=lora)
    views = chosen.again(source) if isinstance(source, nn.Module) else state_views(source, chosen)
    items = track(views, len(views)) if track else iter(views)
    return [matrix_row(view.name, view.read(), view.dtype) for view in items]


def matrix_row(name: str, matrix: Tensor, dtype: torch.dtype) -> dict[str, object]:
    """Measures one matrix.

    Args:
        name: its name.
        matrix: (out, in), or (batch, out, in), of which the row holds the means and the extremes.
        dtype: in which it is stored.

    Returns:
        "name"; "shape" as text; "rank": min(out, in), the number of singular values; "effective
        rank" and "stable rank", both divided by that; "of random": the effective rank of a random
        matrix of this shape; "error": bound on the relative error of the effective rank; "largest"
        and "smallest" singular value; "density": share of entries that are not 0; "method" of the
        decomposition, in float64; "dtype" of the stored weights, whose rounding is part of their
        spectrum. nan where the matrix has nan or inf.
    """
    spectrum = factors(matrix, 0)
    assert spectrum.errors is not None
    values = spectrum.values
    return {
        "name": name,
        "shape": "x".join(map(str, matrix.shape)),
        "rank": values.shape[-1],
        "effective rank": float(effective_rank(values).mean()),
        "of random": random_effective_rank(*matrix.shape[-2:]),
        "error": float(rank_error(values, spectrum.errors).max()),
        "stable rank": float(stable_rank(values).mean()),
        "largest": float(values[..., 0].max()),
        "smallest": float(values[..., -1].min()),
        "density": float((matrix.double() != 0).sum()) / matrix.numel(),
        "method": spectrum.method,
        "dtype": str(dtype).removeprefix("torch."),
    }


def state_views(tensors: Mapping[str, Tensor], views: Views) -> list[MatrixView]:
    """The matrices of a state dict.

    Args:
        tensors: by name.
        views: how to look at them.

    Returns:
        In the order of the dict; tensors that share their memory once.

    Raises:
        RequestError: "heads" or "merged", which need the model.
    """
    views.require_no_model()
    matrices: list[MatrixView] = []
    seen: set[tuple[object, ...]] = set()
    for name, tensor in tensors.items():
        place = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape)
        if not _is_matrix(tensor) or (place in seen and tensor.device.type != "meta"):
            continue
        seen.add(place)
        if views.lora == "product" and (pair := _low_rank_pair(name, tensors)) is not None:
            if "lora_A" in name:
                product = low_rank_product(*pair)
                matrices.append(_fixed(name.replace("lora_A", "lora"), product, tensor.dtype))
            continue
        matrices += _of_tensor(name, tensor, views)
    return matrices


def _of_tensor(name: str, tensor: Tensor, views: Views) -> Iterator[MatrixView]:
    if (experts := expert_matrices(name, tensor)) is not None:
        yield _fixed(name, experts, tensor.dtype)
    elif views.conv == "taps" and tensor.ndim > 2:
        yield _fixed(name, tensor.flatten(2).movedim(-1, 0), tensor.dtype)
    elif views.split == "qkv" and tensor.ndim == 2 and name.endswith(_FUSED):
        # Hugging Face's c_attn stores (in, out).
        fused = tensor.mT if 3 * tensor.shape[0] == tensor.shape[1] else tensor
        if fused.shape[0] != 3 * fused.shape[1]:
            yield _fixed(name, tensor, tensor.dtype)
            return
        for part, rows in zip(("query", "key", "value"), fused.chunk(3), strict=True):
            yield _fixed(f"{name}[{part}]", rows, tensor.dtype)
    else:
        yield _fixed(name, as_matrix(tensor), tensor.dtype)


def _fixed(name: str, matrix: Tensor, dtype: torch.dtype) -> MatrixView:
    return MatrixView(name, dtype, lambda: matrix)


def _low_rank_pair(name: str, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor] | None:
    """The factors (A, B) that a name is one of, if both are there and can be multiplied."""
    down = tensors.get(name.replace("lora_B", "lora_A"))
    up = tensors.get(name.replace("lora_A", "lora_B"))
    if down is None or up is None or down is up or not down.ndim == up.ndim == 2:
        return None
    return (down, up) if up.shape[1] == down.shape[0] else None


def _is_matrix(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.ndim >= 2 and tensor.numel() > 0
