"""One row of numbers for every weight matrix of a model, or of a checkpoint without its code."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from latewood.spectra.baselines import random_effective_rank
from latewood.spectra.matrices.named_matrices import Conv, Lora, MatrixView, Split, Views
from latewood.spectra.matrices.state_matrices import state_matrices
from latewood.spectra.measures import count90, effective_rank, gini, stable_rank
from latewood.spectra.power_law import power_law
from latewood.spectra.solvers.error_bounds import rank_error
from latewood.spectra.solvers.leading_vectors import factors

__all__ = ["COLUMNS", "analyze", "matrix_row", "matrix_rows"]

COLUMNS = (
    *("name", "shape", "rank", "effective rank", "of random", "error", "stable rank", "count90"),
    *("gini", "largest", "smallest", "log norm", "log spectral norm", "alpha", "xmin"),
    *("fit distance", "density", "method", "dtype"),
)
"""The columns of the table: see ``matrix_row``."""


def analyze(
    source: nn.Module | Mapping[str, Tensor],
    *,
    split: Split = "fused",
    conv: Conv = "flatten",
    lora: Lora = "factors",
    track: Callable[[Iterable[Any], int], Iterator[Any]] | None = None,
) -> list[dict[str, object]]:
    """Measures every weight matrix of a model, or of a state dict as far as names and shapes tell.

    Args:
        source: a module; or tensors by name, of which those with two or more dimensions and
            floating-point entries count, the first dimension as the output; for what is left out
            see ``state_matrices``.
        split: see ``Views``. Without a model "heads" are unknown; a fused projection of three equal
            parts can be split as "qkv", and others where ``state_matrices`` is told their heads.
        conv: see ``Views``.
        lora: see ``Views``. Without a model "merged" is unknown, and a "product" has no scale.
        track: shows progress over so many matrices.

    Returns:
        One row per matrix in the source's order, tied ones once; [] if there are none.

    Raises:
        RequestError: an unknown choice, or one that needs the model.
    """
    chosen = Views(split=split, conv=conv, lora=lora)
    if isinstance(source, nn.Module):
        views = chosen.again(source)
    else:
        views = state_matrices(source, chosen).matrices
    return matrix_rows(views, track)


def matrix_rows(
    views: Sequence[MatrixView],
    track: Callable[[Iterable[Any], int], Iterator[Any]] | None = None,
) -> list[dict[str, object]]:
    """Measures matrices, a row for each, see ``matrix_row``.

    Args:
        views: the matrices.
        track: shows progress over so many.
    """
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
        rank", "stable rank" and "count90", divided by that; "of random": the effective rank of a
        random matrix of this shape; "error": bound on the relative error of the effective rank;
        "gini"; "largest" and "smallest" singular value; "log norm": the decimal logarithm of the
        squared Frobenius norm, and "log spectral norm" of the squared largest value; "alpha",
        "xmin" and "fit distance" of ``power_law``, None where there is no law; "density": share of
        entries that are not 0; "method" of the decomposition, in float64; "dtype" of the stored
        weights, whose rounding is part of their spectrum. nan where the matrix has nan or inf.
    """
    spectrum = factors(matrix, 0)
    assert spectrum.errors is not None
    values = spectrum.values
    fits = [power_law(each) for each in values.reshape(-1, values.shape[-1])]
    laws = [law for law in fits if law is not None]
    squares = values.double().square()
    return {
        "name": name,
        "shape": "x".join(map(str, matrix.shape)),
        "rank": values.shape[-1],
        "effective rank": float(effective_rank(values).mean()),
        "of random": random_effective_rank(*matrix.shape[-2:]),
        "error": float(rank_error(values, spectrum.errors).max()),
        "stable rank": float(stable_rank(values).mean()),
        "count90": float(count90(values).mean()),
        "gini": float(gini(values).mean()),
        "largest": float(values[..., 0].max()),
        "smallest": float(values[..., -1].min()),
        "log norm": float(squares.sum(-1).log10().mean()),
        "log spectral norm": float(squares[..., 0].log10().mean()),
        "alpha": fmean([law.alpha for law in laws]) if laws else None,
        "xmin": fmean([law.xmin for law in laws]) if laws else None,
        "fit distance": fmean([law.distance for law in laws]) if laws else None,
        "density": _nonzero(matrix) / matrix.numel(),
        "method": spectrum.method,
        "dtype": str(dtype).removeprefix("torch."),
    }


def _nonzero(matrix: Tensor) -> int:
    """The entries that are not 0, counted without a copy in a wider format."""
    if matrix.element_size() > 1:
        return int(torch.count_nonzero(matrix))
    # Formats of eight bits cannot be compared; some rows at a time.
    return sum(int(torch.count_nonzero(rows.float())) for rows in matrix.flatten(0, -2).split(1024))
