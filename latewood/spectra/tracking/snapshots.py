"""Snapshots in a folder: a Parquet file per step, written whole or not at all, and read back."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from latewood.errors import WorkError
from latewood.spectra.tracking.spectrum import PairAlignment, Spectrum

# pyarrow is imported where a file is read or written: most users of spectra never do.

__all__ = [
    "read_alignments",
    "read_snapshot",
    "rehearse_writing",
    "snapshot_path",
    "snapshot_paths",
    "write_snapshot",
]

_FILE = re.compile(r"step-(\d{8,})\.parquet")


def snapshot_path(folder: Path, step: int) -> Path:
    """Where the snapshot of a step lies in a folder."""
    return folder / f"step-{step:08d}.parquet"


def snapshot_paths(folder: Path) -> dict[int, Path]:
    """The snapshots of a folder by step, in ascending order; {} if there is no such folder."""
    paths = {
        int(match[1]): path
        for path in (folder.iterdir() if folder.is_dir() else ())
        if (match := _FILE.fullmatch(path.name))
    }
    return dict(sorted(paths.items()))


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

    Raises:
        WorkError: the file cannot be written.
    """
    import pyarrow.parquet as pq

    from latewood.spectra.tracking.snapshot_table import DICTIONARY_COLUMNS, snapshot_table

    table = snapshot_table(step, spectra, alignments or {})
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            pq.write_table(table, file, compression="zstd", use_dictionary=DICTIONARY_COLUMNS)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise WorkError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def rehearse_writing() -> None:
    """Loads what the first snapshot would load, a third of a second, before a clock runs."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from latewood.spectra.tracking.snapshot_table import repeated_names

    column = pa.array(np.zeros(1, np.float32))
    table = pa.table({"values": column, "names": repeated_names(["name"], [1])})
    pq.write_table(table, pa.BufferOutputStream(), compression="zstd")


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
    import pyarrow.parquet as pq

    from latewood.spectra.tracking.snapshot_table import columns_to_read, spectra_from_table

    with _readable(path):
        schema = pq.read_schema(path)
        columns = columns_to_read(schema, vectors=vectors)
        return spectra_from_table(pq.read_table(path, columns=columns, use_threads=False), schema)


def read_alignments(path: Path) -> dict[str, PairAlignment]:
    """Reads the alignments of consecutive layers from a snapshot.

    Args:
        path: the file.

    Returns:
        By the pair's name; {} if the probe was not asked for any.

    Raises:
        WorkError: the file cannot be read or is not a snapshot.
    """
    import pyarrow.parquet as pq

    from latewood.spectra.tracking.snapshot_table import alignments_from_schema

    with _readable(path):
        return alignments_from_schema(pq.read_schema(path))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    from pyarrow import ArrowException

    try:
        yield
    except (OSError, KeyError, IndexError, ValueError, TypeError, ArrowException) as error:
        raise WorkError(f"{path}: not a readable snapshot of singular values ({error})") from error
