"""What the weight matrices of a checkpoint look like, from the file alone, without its code."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from torch import Tensor

from latewood.core import read_tensors
from latewood.errors import RequestError, invalid
from latewood.slim.saved_files import read_slim_values
from latewood.spectra.analyze import COLUMNS, matrix_rows
from latewood.spectra.depth_order import depth_order
from latewood.spectra.matrices.attention import KEY_VALUE_HEADS, QUERY_HEADS, Heads
from latewood.spectra.matrices.named_matrices import Conv, Lora, MatrixView, Split, Views
from latewood.spectra.matrices.state_matrices import LeftOut, state_matrices
from latewood.studies.slim_run import is_slim_run
from latewood.terminal.progress import Track
from latewood.terminal.tables import Row
from latewood.training import checkpoints
from latewood.training.opened_run import run_of
from latewood.training.run_folder import RunFolder

__all__ = [
    "COLUMNS",
    "FEW_COLUMNS",
    "Inspection",
    "compared",
    "inspect_checkpoint",
    "sorted_rows",
    "summary_row",
]

FEW_COLUMNS: Final = (
    *("name", "shape", "rank", "effective rank", "of random", "stable rank", "count90", "gini"),
    *("largest", "smallest", "alpha", "fit distance", "density", "dtype"),
)
"""The columns that fit a terminal."""

_AVERAGED: Final = (
    *("effective rank", "of random", "stable rank", "count90", "gini", "log norm"),
    *("log spectral norm", "alpha", "fit distance"),
)
_COMPARED: Final = ("effective rank", "stable rank", "largest", "alpha")


@dataclass(frozen=True)
class Inspection:
    """What a checkpoint holds.

    Args:
        rows: one for each matrix, from input to output as far as the names tell.
        left_out: what was not measured, or not as it was asked for.
        views: the matrices of the rows, in the same order.
    """

    rows: list[Row]
    left_out: list[LeftOut]
    views: list[MatrixView] = field(repr=False)


def inspect_checkpoint(
    path: Path,
    *,
    split: Split = "fused",
    conv: Conv = "flatten",
    lora: Lora = "factors",
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    key: str = "",
    track: Track | None = None,
) -> Inspection:
    """Measures every weight matrix of a checkpoint.

    A torch file keeps the order of the model; the matrices of other files, which are sorted by
    their letters, follow ``depth_order``. Of a folder with a ``config.json`` the heads of attention
    are known, and of PEFT's ``adapter_config.json`` the scale of the adapters.

    Args:
        path: a safetensors or torch file, a folder of a Hugging Face model or a PEFT adapter, a run
            folder, which stands for its last checkpoint where the run has not finished, a
            checkpoint in a run, or the folder of a slim model, whose compressed rows are left out.
        split: see ``analyze``, as ``conv`` and ``lora``.
        conv: see ``analyze``.
        lora: see ``analyze``.
        include: globs on names of tensors or layers to cover.
        exclude: globs on names of tensors or layers to leave out.
        key: see ``read_tensors``.
        track: shows progress over the tensors.

    Returns:
        One row for each floating-point tensor with at least two dimensions.

    Raises:
        RequestError: nothing to read there, it holds no matrix, or a choice that is not allowed.
        WorkError: the file is torn or corrupted, or not the one that a checkpoint was written with.
    """
    views = Views(include, exclude, split, conv, lora)
    tensors = _in_order(_tensors(path, key))
    folder = path if path.is_dir() else path.parent
    state = state_matrices(tensors, views, heads=_heads(folder), lora_scale=_adapter_scale(folder))
    if not state.matrices:
        wanted = "" if views == Views(split=split, conv=conv, lora=lora) else " of these names"
        raise RequestError(
            f"{path}: got {len(tensors)} tensors, none of them a matrix{wanted}; expected "
            "floating-point tensors with two or more dimensions"
        )

    def shown(items: Iterable[Any], total: int) -> Iterator[Any]:
        assert track is not None
        return track(items, f"spectra of {path.name}", total)

    rows = matrix_rows(state.matrices, None if track is None else shown)
    return Inspection(list(rows), state.left_out, state.matrices)


def sorted_rows(rows: Sequence[Row], column: str) -> list[Row]:
    """Rows by one column, the largest first; text from A to Z.

    Args:
        rows: of one table.
        column: by which; nan and what is missing come last.

    Raises:
        RequestError: there is no such column.
    """
    if rows and column not in rows[0]:
        raise invalid("sort", column, f"one of {', '.join(rows[0])}")

    def place(row: Row) -> tuple[bool, object]:
        value = row[column]
        if isinstance(value, int | float):
            return (math.isnan(value), -value)
        return (value is None, value or "")

    texts = any(isinstance(row[column], str) for row in rows)
    missing = {} if texts else {column: math.nan}
    return sorted(
        rows, key=lambda row: place(row if row[column] is not None else {**row, **missing})
    )


def summary_row(rows: Sequence[Row]) -> Row:
    """Means over all matrices, the largest and the smallest singular value of any.

    Args:
        rows: of one inspection.
    """
    summary: dict[str, object] = {"name": f"all {len(rows)}: means, extremes"}
    for column in _AVERAGED:
        values = [value for row in rows if (value := _finite(row[column])) is not None]
        summary[column] = fmean(values) if values else None
    for column, extreme in (("largest", max), ("smallest", min)):
        values = [value for row in rows if (value := _finite(row[column])) is not None]
        summary[column] = extreme(values) if values else None
    return summary


def compared(first: Inspection, second: Inspection) -> list[Row]:
    """One row for each matrix that two checkpoints both have, with both figures and a distance.

    Args:
        first: what is looked at.
        second: what it is compared with.

    Returns:
        Rows with "distance", the Frobenius norm of the difference over that of the second (None for
        other shapes), and for several quantities the first's value and how far it is above the
        second's. In the first's order.

    Raises:
        RequestError: no matrix is in both.
    """
    others = {
        str(row["name"]): (row, view) for row, view in zip(second.rows, second.views, strict=True)
    }
    rows: list[Row] = []
    for row, view in zip(first.rows, first.views, strict=True):
        if (match := others.get(str(row["name"]))) is None:
            continue
        other, other_view = match
        joined: dict[str, object] = {name: row[name] for name in ("name", "shape")}
        joined["distance"] = _distance(view.read(), other_view.read())
        for column in _COMPARED:
            one, two = _finite(row[column]), _finite(other[column])
            joined[column] = one
            joined[f"{column} change"] = None if one is None or two is None else one - two
        rows.append(joined)
    if not rows:
        raise RequestError(
            "against: got a checkpoint that has no matrix of the same name; expected one of the "
            "same architecture"
        )
    return rows


def _distance(matrix: Tensor, other: Tensor) -> float | None:
    if matrix.shape != other.shape:
        return None
    whole = float(other.float().norm())
    return float((matrix.float() - other.float()).norm()) / whole if whole else None


def _finite(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _in_order(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Tensors of a file that sorts them by name, from input to output."""
    names = list(tensors)
    if names != sorted(names):
        return tensors
    return {name: tensors[name] for name in depth_order(names)}


def _heads(folder: Path) -> Heads | None:
    """The heads of attention that a model's configuration knows."""
    config = _json(folder / "config.json")
    query = _count(config, QUERY_HEADS)
    if query is None:
        return None
    # Falcon's first models share one head of keys and values and do not count it.
    shared = config.get("multi_query") is True and not config.get("new_decoder_architecture")
    return Heads(query, 1 if shared else _count(config, KEY_VALUE_HEADS) or query)


def _count(config: Mapping[str, Any], names: Sequence[str]) -> int | None:
    counts = (config.get(name) for name in names)
    return next((n for n in counts if type(n) is int and n > 0), None)


def _adapter_scale(folder: Path) -> float:
    """The factor by which a PEFT adapter's products count."""
    config = _json(folder / "adapter_config.json")
    alpha, rank = config.get("lora_alpha"), config.get("r")
    if not isinstance(alpha, int | float) or type(rank) is not int or rank < 1:
        return 1.0
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _json(path: Path) -> dict[str, Any]:
    """The entries of a file of settings; {} where there is none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _tensors(path: Path, key: str) -> dict[str, Tensor]:
    if is_slim_run(path):
        # Its files number the tensors, and hold inputs as well, which are no weights.
        return read_slim_values(path / "model")
    return read_tensors(_weights(path), key=key, dense=False)


def _weights(path: Path) -> Path:
    """The file or folder to read: of a run under way its last sound checkpoint, verified."""
    run = RunFolder(path)
    if run.exists and not run.finished:
        latest = checkpoints.latest(run.checkpoints)
        return path if latest is None else latest.weights
    folder = (path.parent if path.name == checkpoints.WEIGHTS else path).resolve()
    step = checkpoints.step_of(folder)
    if step is None or run_of(folder) is None:
        return path
    return checkpoints.at_step(folder.parent, step).weights
