"""Encoded samples in Parquet files, in the layout that the Hugging Face hub serves."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from latewood.errors import RequestError, WorkError
from latewood.tasks.data.sources import CHUNK, Encoded, hash_files, pick_column

__all__ = ["ParquetSource", "parquet_files"]


def parquet_files(folder: Path, split: str) -> list[Path]:
    """The files of a split, ``split-*.parquet`` or ``split.parquet``, in the order of their names.

    They lie in the folder or, as in a copy of a hub repository, in one folder below it.

    Raises:
        RequestError: several folders have the split, or a part of it is missing.
    """
    for pattern in ("", "*/"):
        paths = [
            *folder.glob(f"{pattern}{split}-*.parquet"),
            *folder.glob(f"{pattern}{split}.parquet"),
        ]
        if paths:
            break
    else:
        return []
    homes = sorted({file.parent for file in paths})
    if len(homes) > 1:
        names = ", ".join(home.name for home in homes)
        raise RequestError(f"folder: {folder} has the split {split!r} in {names}; name one of them")
    files = sorted(paths)
    numbered = [re.fullmatch(r".*-(\d+)-of-(\d+)", file.stem) for file in files]
    for part in numbered:
        expected = int(part[2]) if part else len(files)
        if expected != len(files):
            raise RequestError(
                f"folder: {homes[0]} has {len(files)} of the {expected} parts of the split "
                f"{split!r}: {', '.join(file.name for file in files)}"
            )
    return files


class ParquetSource:
    """One split in Parquet files, with a column of encoded samples and one of classes.

    Args:
        files: files of the split in order.
        columns: names that the column with the encoded samples may have; its type is
            struct {bytes, path} or plain bytes.

    Raises:
        RequestError: a column is missing or of another type, or there are no rows.
        WorkError: a file is no readable Parquet file.
    """

    def __init__(self, files: Sequence[Path], *, columns: Sequence[str]) -> None:
        self._files = list(files)
        self._counts: list[int] = []
        self.name = f"{files[0].parent.name}/{files[0].name.split('-')[0]}"
        for file in self._files:
            with _open(file) as opened:
                self._column, self._label = _columns(opened.schema_arrow, columns, str(file))
                self._counts.append(opened.metadata.num_rows)
        if len(self) == 0:
            raise RequestError(f"{', '.join(map(str, files))}: no rows; expected one per sample")

    def __len__(self) -> int:
        """Number of samples."""
        return sum(self._counts)

    def fingerprint(self) -> str:
        """A hash of the content: it changes when any sample does."""
        return hash_files(self._files, self._files[0].parent)

    def chunks(self) -> Iterator[list[Encoded]]:
        """The samples in their order, up to ``CHUNK`` at a time."""
        for file in self._files:
            yield from self._chunks(file)

    def _chunks(self, file: Path) -> Iterator[list[Encoded]]:
        import pyarrow as pa

        row = 0
        with _open(file) as opened:
            columns = [self._column, self._label]
            reader = opened.iter_batches(batch_size=CHUNK, columns=columns)
            while True:
                try:
                    batch = next(reader, None)
                    rows = [] if batch is None else self._rows(batch, file, row)
                except (pa.ArrowException, OSError) as error:
                    last = min(row + CHUNK, opened.metadata.num_rows) - 1
                    raise WorkError(
                        f"{file}: is damaged between row {row} and row {last}: {_line(error)}"
                    ) from error
                if batch is None:
                    return
                row += len(rows)
                yield rows

    def _rows(self, batch: Any, file: Path, first: int) -> list[Encoded]:
        import pyarrow as pa
        import pyarrow.compute as pc

        stored, labels = batch.column(self._column), batch.column(self._label).to_pylist()
        names: list[str | None] = [None] * len(labels)
        if pa.types.is_struct(stored.type):
            if stored.type.get_field_index("path") >= 0:
                names = pc.struct_field(stored, "path").to_pylist()
            stored = pc.struct_field(stored, "bytes")
        rows = []
        for k, (content, label) in enumerate(zip(stored.to_pylist(), labels, strict=True)):
            origin = f"{file}, row {first + k}" + (f" ({names[k]})" if names[k] else "")
            if content is None:
                raise WorkError(f"{origin}: has no bytes in the column {self._column!r}")
            if label is None:
                raise RequestError(f"{origin}: has no label")
            rows.append(Encoded(content, label, origin))
        return rows


def _open(file: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise WorkError(f"{file}: cannot be read as a Parquet file: {_line(error)}") from error


def _columns(schema: Any, wanted: Sequence[str], where: str) -> tuple[str, str]:
    import pyarrow as pa

    column = pick_column(schema.names, wanted, where)
    label = pick_column(schema.names, ("label",), where)
    kind = schema.field(column).type
    inner = kind
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        inner = kind.field("bytes").type
    if not (pa.types.is_binary(inner) or pa.types.is_large_binary(inner)):
        raise RequestError(
            f"{where}: the column {column!r} is {kind}; expected struct<bytes: binary, path: "
            "string> or binary"
        )
    if not pa.types.is_integer(schema.field(label).type):
        raise RequestError(
            f"{where}: the column {label!r} is {schema.field(label).type}; expected integers"
        )
    return column, label


def _line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
