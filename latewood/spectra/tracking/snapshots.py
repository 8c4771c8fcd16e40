"""The singular values of a model at one step, and the Parquet file that keeps them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from latewood.errors import WorkError

__all__ = [
    "PairAlignment",
    "Spectrum",
    "read_alignments",
    "read_snapshot",
    "rehearse_writing",
    "snapshot_path",
    "snapshot_paths",
    "write_snapshot",
]

_SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("name", pa.string()),
        ("index", pa.int32()),
        ("singular_value", pa.float32()),
        ("error", pa.float32()),
        ("method", pa.string()),
        ("dtype", pa.string()),
    ]
)
_SIDES = ("left", "right")
_METADATA = b"latewood.spectra"
Vectors = np.ndarray[tuple[int, ...], np.dtype[np.floating[Any]]]

_FILE = re.compile(r"step-(\d{8,})\.parquet")


@dataclass(frozen=True)
class Spectrum:
    """The singular values of one matrix, perhaps with the first of its singular vectors.

    Args:
        name: the matrix's name, mostly that of its parameter.
        shape: (out, in), or (groups, out, in), of the matrix.
        values: (R,), or (groups, R), descending along the last dimension; the first k of them if
            ``method`` is "warm".
        left: (out, k), or (groups, out, k), in half or single precision; None without vectors.
        right: (in, k), or (groups, in, k), alike.
        errors: shaped as ``values``, bounds on the distances to the exact ones.
        method: "svd" or "gram", both in float64; "warm" for a few values, followed from earlier
            ones; "none" where there are none to be had.
        dtype: of the weights as they are stored.
    """

    name: str
    shape: tuple[int, ...]
    values: np.ndarray[tuple[int, ...], np.dtype[np.float32]]
    left: Vectors | None = None
    right: Vectors | None = None
    errors: Vectors | None = None
    method: str = "svd"
    dtype: str = "float32"

    @property
    def complete(self) -> bool:
        """Whether all singular values are there."""
        return self.values.shape[-1] == min(self.shape[-2:])

    @property
    def finite(self) -> bool:
        """Whether the weights were: NaN or Inf among them leaves nothing to measure."""
        return bool(np.isfinite(self.values).all())

    @property
    def collapsed(self) -> bool:
        """Whether all weights are zero."""
        return self.values.size > 0 and not self.values.any()


@dataclass(frozen=True)
class PairAlignment:
    """How two consecutive layers aligned at one step.

    Args:
        diagonal: (k,) entries of the alignment's diagonal.
        score: the mean of the first of them.
        baseline: what independent random directions give on average.
    """

    diagonal: tuple[float, ...]
    score: float
    baseline: float


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


def write_snapshot(
    path: Path,
    step: int,
    spectra: Sequence[Spectrum],
    alignments: Mapping[str, PairAlignment] | None = None,
) -> None:
    """Writes the spectra of one step, whole or not at all.

    Rows follow the order of ``spectra``; groups follow each other, each with an index from 0. The
    shapes of the matrices and the alignments are in the file's metadata. If the spectra have
    vectors, two more columns hold those of each value, and null beyond the first k.

    Args:
        path: the file; its folder is created.
        step: the number of updates before the snapshot.
        spectra: one per matrix.
        alignments: by the pair's name.
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
            "singular_value": _column([s.values for s in spectra]),
            "error": _column([_errors(s) for s in spectra]),
            "method": _repeated([spectrum.method for spectrum in spectra], sizes),
            "dtype": _repeated([spectrum.dtype for spectrum in spectra], sizes),
            **vectors,
        },
        schema=schema.with_metadata({_METADATA: json.dumps(_about(spectra, alignments or {}))}),
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


def rehearse_writing() -> None:
    """Loads what the first snapshot would load, a third of a second, before a clock runs."""
    column = pa.array(np.zeros(1, np.float32))
    table = pa.table({"values": column, "names": _repeated(["name"], [1])})
    pq.write_table(table, pa.BufferOutputStream(), compression="zstd")


def _about(
    spectra: Sequence[Spectrum], alignments: Mapping[str, PairAlignment]
) -> dict[str, object]:
    return {
        "shapes": {s.name: s.shape for s in spectra},
        "counts": {s.name: s.values.shape[-1] for s in spectra},
        "alignments": {name: asdict(each) for name, each in alignments.items()},
    }


def _column(parts: Sequence[Vectors]) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    flat = (part.ravel().astype(np.float32) for part in parts)
    return np.concatenate([np.zeros(0, np.float32), *flat])


def _errors(spectrum: Spectrum) -> Vectors:
    if spectrum.errors is None:
        return np.full_like(spectrum.values, np.nan)
    # Rounded up, so that the bound still holds in single precision.
    single = spectrum.errors.astype(np.float32)
    return np.where(single < spectrum.errors, np.nextafter(single, np.float32(np.inf)), single)


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
    """Reads the spectra that ``write_snapshot`` wrote, in the same order.

    Args:
        path: the file.
        vectors: whether to read the singular vectors too, where the file has some.

    Returns:
        One spectrum per matrix.

    Raises:
        WorkError: the file cannot be read or is not a snapshot.
    """
    with _readable(path):
        schema = pq.read_schema(path)
        about = _metadata(schema)
        sides = [side for side in _SIDES if vectors and side in schema.names]
        columns = ["singular_value", "error", "method", "dtype", *sides]
        table = pq.read_table(path, columns=columns, use_threads=False)
        numbers = [table.column(c).to_numpy().astype(np.float32) for c in columns[:2]]
        spectra, start = [], 0
        for name, shape in about["shapes"].items():
            groups, rank = tuple(shape[:-2]), about["counts"][name]
            stop = start + int(np.prod(groups)) * rank
            found = {s: _vectors(table.column(s), start, groups, rank) for s in sides}
            values, errors = (each[start:stop].reshape(*groups, rank) for each in numbers)
            method, dtype = (
                table.column(c)[start].as_py() if stop > start else default
                for c, default in (("method", "svd"), ("dtype", "float32"))
            )
            left, right = found.get("left"), found.get("right")
            own = Spectrum(name, tuple(shape), values, left, right, errors, method, dtype)
            spectra.append(own)
            start = stop
    return spectra


def read_alignments(path: Path) -> dict[str, PairAlignment]:
    """Reads the alignments of consecutive layers from a snapshot.

    Args:
        path: the file.

    Returns:
        By the pair's name; {} if the probe was not asked for any.

    Raises:
        WorkError: the file cannot be read or is not a snapshot.
    """
    with _readable(path):
        found = _metadata(pq.read_schema(path))["alignments"]
        return {
            name: PairAlignment(tuple(own["diagonal"]), own["score"], own["baseline"])
            for name, own in found.items()
        }


def _metadata(schema: pa.Schema) -> dict[str, Any]:
    about: dict[str, Any] = json.loads((schema.metadata or {})[_METADATA])
    return about


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, KeyError, IndexError, ValueError, TypeError, pa.ArrowException) as error:
        raise WorkError(f"{path}: not a readable snapshot of singular values ({error})") from error
