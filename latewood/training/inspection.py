"""What the weight matrices of a checkpoint look like, from the file alone, without its code."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from latewood.core import read_tensors
from latewood.errors import RequestError
from latewood.spectra import (
    as_matrix,
    effective_rank,
    random_effective_rank,
    singular_values,
    stable_rank,
)
from latewood.training.tables import Row

__all__ = ["COLUMNS", "inspect_checkpoint", "inspect_tensor"]

COLUMNS = (
    "name",
    "shape",
    "rank",
    "effective rank",
    "of random",
    "stable rank",
    "largest",
    "smallest",
    "density",
)
"""The columns of the table: see ``inspect_tensor``."""

Track = Callable[[Iterable[Any], str, int], Iterator[Any]]


def inspect_checkpoint(path: Path, *, track: Track | None = None) -> list[Row]:
    """Measures every weight matrix of a checkpoint.

    Args:
        path: a safetensors or torch file, a Hugging Face model folder, or a run folder.
        track: shows progress over the tensors.

    Returns:
        One row for each floating-point tensor with at least two dimensions, in the file's order.

    Raises:
        RequestError: nothing to read there, or it holds no matrix.
        WorkError: the file is torn or corrupted.
    """
    tensors = read_tensors(path)
    matrices = [(name, tensor) for name, tensor in tensors.items() if _is_matrix(tensor)]
    if not matrices:
        raise RequestError(
            f"{path}: got {len(tensors)} tensors, none of them a matrix; expected floating-point "
            "tensors with two or more dimensions"
        )
    items = track(matrices, f"spectra of {path.name}", len(matrices)) if track else matrices
    return [inspect_tensor(name, tensor) for name, tensor in items]


def inspect_tensor(name: str, tensor: Tensor) -> Row:
    """Measures one tensor as the matrix (out, everything else).

    Args:
        name: its name.
        tensor: (out, ...) floating point.

    Returns:
        "name"; "shape" as text; "rank": min(out, in), the number of singular values; "effective
        rank" and "stable rank", both divided by that; "of random": the effective rank of a random
        matrix of this shape; "largest" and "smallest" singular value; "density": share of entries
        that are not 0. nan where the tensor has nan or inf.
    """
    matrix = as_matrix(tensor)
    values = singular_values(matrix)
    return {
        "name": name,
        "shape": "x".join(map(str, tensor.shape)),
        "rank": len(values),
        "effective rank": float(effective_rank(values)),
        "of random": random_effective_rank(*matrix.shape),
        "stable rank": float(stable_rank(values)),
        "largest": float(values[0]),
        "smallest": float(values[-1]),
        "density": float(tensor.count_nonzero()) / tensor.numel(),
    }


def _is_matrix(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.ndim >= 2 and tensor.numel() > 0
