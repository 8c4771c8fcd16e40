"""The spectra of one step as an Arrow table with a row per singular value, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa

from latewood.spectra.tracking.spectrum import FloatArray, PairAlignment, Spectrum

__all__ = [
    "DICTIONARY_COLUMNS",
    "alignments_from_schema",
    "columns_to_read",
    "repeated_names",
    "snapshot_table",
    "spectra_from_table",
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
_VECTORS = ("left", "right")
_METADATA = b"latewood.spectra"

DICTIONARY_COLUMNS: list[str] = list(_SCHEMA.names)
"""All but the vectors, which are noise to a compressor, and far too many for a dictionary."""


def snapshot_table(
    step: int, spectra: Sequence[Spectrum], alignments: Mapping[str, PairAlignment]
) -> pa.Table:
    """The table of a step; see ``write_snapshot``.

    Args:
        step: the number of updates before the snapshot.
        spectra: one per matrix.
        alignments: by the pair's name.
    """
    sizes = [spectrum.values.size for spectrum in spectra]
    schema, vectors = _SCHEMA, {}
    if spectra and all(spectrum.left is not None for spectrum in spectra):
        for side in _VECTORS:
            rows = [_vector_rows(spectrum, getattr(spectrum, side)) for spectrum in spectra]
            vectors[side] = pa.concat_arrays(rows)
            schema = schema.append(pa.field(side, vectors[side].type))
    metadata = {
        "shapes": {spectrum.name: spectrum.shape for spectrum in spectra},
        "counts": {spectrum.name: spectrum.values.shape[-1] for spectrum in spectra},
        "alignments": {name: asdict(alignment) for name, alignment in alignments.items()},
    }
    return pa.table(
        {
            "step": np.full(sum(sizes), step, dtype=np.int64),
            "name": repeated_names([spectrum.name for spectrum in spectra], sizes),
            "index": np.concatenate([np.zeros(0, np.int32), *map(_indices, spectra)]),
            "singular_value": _float_column([spectrum.values for spectrum in spectra]),
            "error": _float_column([_error_bounds(spectrum) for spectrum in spectra]),
            "method": repeated_names([spectrum.method for spectrum in spectra], sizes),
            "dtype": repeated_names([spectrum.dtype for spectrum in spectra], sizes),
            **vectors,
        },
        schema=schema.with_metadata({_METADATA: json.dumps(metadata)}),
    )


def columns_to_read(schema: pa.Schema, *, vectors: bool) -> list[str]:
    """The columns that ``spectra_from_table`` needs, with the vectors where there are some."""
    sides = [side for side in _VECTORS if vectors and side in schema.names]
    return ["singular_value", "error", "method", "dtype", *sides]


def spectra_from_table(table: pa.Table, schema: pa.Schema) -> list[Spectrum]:
    """The spectra that a table was made of, in the same order.

    Args:
        table: its columns, as ``columns_to_read`` says.
        schema: of the file.

    Raises:
        Exception: it is no table of spectra.
    """
    metadata = _metadata(schema)
    sides = [side for side in _VECTORS if side in table.column_names]
    singular_values, errors = (
        table.column(name).to_numpy().astype(np.float32) for name in ("singular_value", "error")
    )
    spectra, start = [], 0
    for name, shape in metadata["shapes"].items():
        groups, rank = tuple(shape[:-2]), metadata["counts"][name]
        stop = start + int(np.prod(groups)) * rank
        vectors = {s: _vectors_of_rows(table.column(s), start, groups, rank) for s in sides}
        method, dtype = (
            table.column(column)[start].as_py() if stop > start else default
            for column, default in (("method", "svd"), ("dtype", "float32"))
        )
        spectrum = Spectrum(
            name,
            tuple(shape),
            singular_values[start:stop].reshape(*groups, rank),
            vectors.get("left"),
            vectors.get("right"),
            errors[start:stop].reshape(*groups, rank),
            method,
            dtype,
        )
        spectra.append(spectrum)
        start = stop
    return spectra


def alignments_from_schema(schema: pa.Schema) -> dict[str, PairAlignment]:
    """The alignments by the pair's name.

    Args:
        schema: of the file.

    Raises:
        Exception: it is not that of a table of spectra.
    """
    return {
        name: PairAlignment(tuple(entry["diagonal"]), entry["score"], entry["baseline"])
        for name, entry in _metadata(schema)["alignments"].items()
    }


def repeated_names(names: list[str], counts: list[int]) -> pa.Array:
    """A column with each text as often as its count says."""
    positions = np.repeat(np.arange(len(names), dtype=np.int32), counts)
    return pa.array(names, type=pa.string()).take(pa.array(positions))


def _metadata(schema: pa.Schema) -> dict[str, Any]:
    metadata: dict[str, Any] = json.loads((schema.metadata or {})[_METADATA])
    return metadata


def _float_column(arrays: Sequence[FloatArray]) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    flat = (array.ravel().astype(np.float32) for array in arrays)
    return np.concatenate([np.zeros(0, np.float32), *flat])


def _error_bounds(spectrum: Spectrum) -> FloatArray:
    if spectrum.errors is None:
        return np.full_like(spectrum.values, np.nan)
    # Rounded up, so that the bound still holds in single precision.
    single = spectrum.errors.astype(np.float32)
    return np.where(single < spectrum.errors, np.nextafter(single, np.float32(np.inf)), single)


def _indices(spectrum: Spectrum) -> np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
    rank = spectrum.values.shape[-1]
    return np.tile(np.arange(rank, dtype=np.int32), spectrum.values.size // max(1, rank))


def _vector_rows(spectrum: Spectrum, vectors: FloatArray) -> pa.Array:
    """One list per singular value: the vector of the first k, null for the others."""
    *groups, size, count = vectors.shape
    rank, number = spectrum.values.shape[-1], int(np.prod(groups))
    lengths = np.zeros((number, rank), np.int64)
    lengths[:, :count] = size
    offsets = np.concatenate([[0], lengths.cumsum()]).astype(np.int32)
    flat = pa.array(np.ascontiguousarray(np.swapaxes(vectors, -1, -2)).ravel())
    absent = np.broadcast_to(np.arange(rank) >= count, (number, rank)).ravel()
    return pa.ListArray.from_arrays(pa.array(offsets), flat, mask=pa.array(absent))


def _vectors_of_rows(
    column: pa.ChunkedArray, start: int, groups: tuple[int, ...], rank: int
) -> FloatArray:
    """The inverse of ``_vector_rows`` for the spectrum that starts at a row."""
    rows = column.slice(start, int(np.prod(groups)) * rank)
    count = (len(rows) - rows.null_count) // max(1, int(np.prod(groups)))
    flat = pa.concat_arrays([chunk.flatten() for chunk in rows.chunks]).to_numpy(
        zero_copy_only=False
    )
    return np.swapaxes(flat.reshape(*groups, count, -1), -1, -2)
