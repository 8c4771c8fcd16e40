"""The singular values of a model at one step, and the Parquet file that keeps them."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from latewood.errors import WorkError

__all__ = ["Spectrum", "read_snapshot", "snapshot_path", "snapshot_paths", "write_snapshot"]

_SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("name", pa.string()),
        ("index", pa.int32()),
        ("singular_value", pa.float32()),
    ]
)
_SIDES = ("left", "right")
_METADATA = b"latewood.spectra"
Vectors = np.ndarray[tuple[int, ...], np.dtype[np.floating[Any]]]

_FILE = re.compile(r"step-(\d{8,})\.parquet")


@dataclass(frozen=True)
class Spectrum:
    """The singular values of one parameter, perhaps with the first of its singular vectors.

    Args:
        name: the parameter's full name.
        shape: (out, in), or (groups, out, in), of its matrix.
        values: (R,), or (groups, R), descending along the last dimension.
        left: (out, k), or (groups, out, k), in half or single precision; None without vectors.
        right: (in, k), or (groups, in, k), alike.
    """

    name: str
    shape: tuple[int, ...]
    values: np.ndarray[tuple[int, ...], np.dtype[np.float32]]
    left: Vectors | None = None
    right: Vectors | None = None


def snapshot_path(folder: Path, step: int) -> Path:
    """Where the snapshot of a step lies in a folder."""
    return folder / f"step-{step:08d}.parquet"


def snapshot_paths(folder: Path) -> dict[int, Path]:
    """The snapshots of a folder by step, in ascending order; {} if there is no such folder."""
    found = {
        int(match[1]): path
        for path in (folder.iterdir() if folder.is_dir() else ())
        if (match := _FILE.fullmatch(path.name))
    }
    return dict(sorted(found.items()))


def write_snapshot(path: Path, step: int, spectra: list[Spectrum]) -> None:
    """Writes the spectra of one step, whole or not at all.

    Rows follow the order of ``spectra``; groups follow each other, each with an index from 0. The
    shapes of the matrices are in the file's metadata. If the spectra have vectors, two more columns
    hold those of each value, and null beyond the first k.

    Args:
        path: the file; its folder is created.
        step: the number of updates before the snapshot.
        spectra: one per parameter.
    """
    sizes = [spectrum.values.size for spectrum in spectra]
    with_vectors = bool(spectra) and all(s.left is not None for s in spectra)
    schema, vectors = _SCHEMA, {}
    if with_vectors:
        for side in _SIDES:
            vectors[side] = pa.concat_arrays([_rows(s, getattr(s, side)) for s in spectra])
            schema = schema.append(pa.field(side, vectors[side].type))
    table = pa.table(
        {
            "step": np.full(sum(sizes), step, dtype=np.int64),
            "name": _repeated([spectrum.name for spectrum in spectra], sizes),
            "index": np.concatenate([np.zeros(0, np.int32), *map(_indices, spectra)]),
            "singular_value": np.concatenate(
                [np.zeros(0, np.float32), *(s.values.ravel() for s in spectra)]
            ),
            **vectors,
        },
        schema=schema.with_metadata(
            {_METADATA: json.dumps({"shapes": {s.name: s.shape for s in spectra}})}
        ),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            # Vectors are noise to a compressor, and far too many for a dictionary.
            pq.write_table(table, file, compression="zstd", use_dictionary=list(_SCHEMA.names))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _repeated(names: list[str], counts: list[int]) -> pa.Array:
    positions = np.repeat(np.arange(len(names), dtype=np.int32), counts)
    return pa.array(names, type=pa.string()).take(pa.array(positions))


def _indices(spectrum: Spectrum) -> np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
    rank = spectrum.values.shape[-1]
    return np.tile(np.arange(rank, dtype=np.int32), spectrum.values.size // max(1, rank))


def _rows(spectrum: Spectrum, vectors: Vectors) -> pa.Array:
    """One list per singular value: the vector of the first k, null for the rest."""
    *groups, size, count = vectors.shape
    rank, number = spectrum.values.shape[-1], int(np.prod(groups))
    lengths = np.zeros((number, rank), np.int64)
    lengths[:, :count] = size
    offsets = np.concatenate([[0], lengths.cumsum()]).astype(np.int32)
    flat = pa.array(np.ascontiguousarray(np.swapaxes(vectors, -1, -2)).ravel())
    absent = np.broadcast_to(np.arange(rank) >= count, (number, rank)).ravel()
    return pa.ListArray.from_arrays(pa.array(offsets), flat, mask=pa.array(absent))


def _vectors(column: pa.ChunkedArray, start: int, groups: tuple[int, ...], rank: int) -> Vectors:
    """The inverse of ``_rows`` for the spectrum that starts at a row."""
    part = column.slice(start, int(np.prod(groups)) * rank)
    count = (len(part) - part.null_count) // max(1, int(np.prod(groups)))
    flat = pa.concat_arrays([chunk.flatten() for chunk in part.chunks]).to_numpy(
        zero_copy_only=False
    )
    return np.swapaxes(flat.reshape(*groups, count, -1), -1, -2)


def read_snapshot(path: Path, *, vectors: bool = False) -> list[Spectrum]:
    """Reads what ``write_snapshot`` wrote, in the same order.

    Args:
        path: the file.
        vectors: whether to read the singular vectors too, where the file has some.

    Returns:
        One spectrum per parameter.

    Raises:
        WorkError: the file cannot be read or is not a snapshot.
    """
    try:
        schema = pq.read_schema(path)
        shapes: dict[str, list[int]] = json.loads((schema.metadata or {})[_METADATA])["shapes"]
        sides = [side for side in _SIDES if vectors and side in schema.names]
        table = pq.read_table(path, columns=["singular_value", *sides], use_threads=False)
        values = table.column("singular_value").to_numpy().astype(np.float32)
        spectra, start = [], 0
        for name, shape in shapes.items():
            groups, rank = tuple(shape[:-2]), min(shape[-2:])
            stop = start + int(np.prod(groups)) * rank
            found = {s: _vectors(table.column(s), start, groups, rank) for s in sides}
            own = values[start:stop].reshape(*groups, rank)
            spectra.append(Spectrum(name, tuple(shape), own, **found))
            start = stop
    except (OSError, KeyError, ValueError, TypeError, pa.ArrowException) as error:
        raise WorkError(f"{path}: not a readable snapshot of singular values ({error})") from error
    return spectra
