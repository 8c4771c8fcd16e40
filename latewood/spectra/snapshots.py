"""The singular values of a model at one step, and the Parquet file that keeps them."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

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
_METADATA = b"latewood.spectra"
_FILE = re.compile(r"step-(\d{8,})\.parquet")


@dataclass(frozen=True)
class Spectrum:
    """The singular values of one parameter.

    Args:
        name: the parameter's full name.
        shape: (out, in), or (groups, out, in), of its matrix.
        values: (R,), or (groups, R), descending along the last dimension.
    """

    name: str
    shape: tuple[int, ...]
    values: np.ndarray[tuple[int, ...], np.dtype[np.float32]]


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
    shapes of the matrices are in the file's metadata.

    Args:
        path: the file; its folder is created.
        step: the number of updates before the snapshot.
        spectra: one per parameter.
    """
    sizes = [spectrum.values.size for spectrum in spectra]
    table = pa.table(
        {
            "step": np.full(sum(sizes), step, dtype=np.int64),
            "name": _repeated([spectrum.name for spectrum in spectra], sizes),
            "index": np.concatenate([np.zeros(0, np.int32), *map(_indices, spectra)]),
            "singular_value": np.concatenate(
                [np.zeros(0, np.float32), *(s.values.ravel() for s in spectra)]
            ),
        },
        schema=_SCHEMA.with_metadata(
            {_METADATA: json.dumps({"shapes": {s.name: s.shape for s in spectra}})}
        ),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            pq.write_table(table, file, compression="zstd")
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


def read_snapshot(path: Path) -> list[Spectrum]:
    """Reads what ``write_snapshot`` wrote, in the same order.

    Args:
        path: the file.

    Returns:
        One spectrum per parameter.

    Raises:
        WorkError: the file cannot be read or is not a snapshot.
    """
    try:
        metadata = pq.read_schema(path).metadata or {}
        shapes: dict[str, list[int]] = json.loads(metadata[_METADATA])["shapes"]
        table = pq.read_table(path, columns=["singular_value"], use_threads=False)
        values = table.column("singular_value").to_numpy().astype(np.float32)
        spectra, start = [], 0
        for name, shape in shapes.items():
            sizes = (*shape[:-2], min(shape[-2:]))
            stop = start + int(np.prod(sizes))
            spectra.append(Spectrum(name, tuple(shape), values[start:stop].reshape(sizes)))
            start = stop
    except (OSError, KeyError, ValueError, TypeError, pa.ArrowException) as error:
        raise WorkError(f"{path}: not a readable snapshot of singular values ({error})") from error
    return spectra
