"""Where encoded samples come from: Parquet files, folders of images, or the Hugging Face hub."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from latewood.errors import RequestError, WorkError

__all__ = [
    "CHUNK",
    "Encoded",
    "FolderSource",
    "HubSource",
    "SampleSource",
    "check_label",
    "content_hash",
    "hash_files",
    "pick_column",
]

CHUNK = 1024
"""Samples read and decoded at a time."""

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""File names that end so are images."""


class Encoded(NamedTuple):
    """One sample as it is stored: its bytes, its class, and where it is, for errors."""

    content: bytes
    label: int
    origin: str


class SampleSource(Protocol):
    """One split of a data set, still encoded."""

    name: str

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def fingerprint(self) -> str:
        """A hash of the content: it changes when any sample does."""
        ...

    def chunks(self) -> Iterator[list[Encoded]]:
        """The samples in their order, up to ``CHUNK`` at a time."""
        ...


def pick_column(columns: Sequence[str], wanted: Sequence[str], where: str) -> str:
    """The first of the wanted columns that is there.

    Raises:
        RequestError: none of them is; it lists the columns that are.
    """
    for name in wanted:
        if name in columns:
            return name
    raise RequestError(
        f"{where}: has no column {' or '.join(map(repr, wanted))}; its columns are "
        f"{', '.join(map(repr, columns)) or 'none'}"
    )


def check_label(encoded: Encoded, classes: int) -> None:
    """Refuses a label that is not one of the classes.

    Raises:
        RequestError: it names where the sample is.
    """
    if not 0 <= encoded.label < classes:
        raise RequestError(f"{encoded.origin}: label {encoded.label}; expected 0 to {classes - 1}")


def content_hash(*parts: str) -> str:
    """A short hash of some strings, for names of files."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(f"{len(part)}:{part}".encode())
    return digest.hexdigest()


def hash_files(files: Sequence[Path], root: Path) -> str:
    """A hash of the names (relative to ``root``), sizes and contents of files.

    Raises:
        WorkError: a file cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        content = _read(file)
        digest.update(f"{file.relative_to(root)}:{len(content)}:".encode())
        digest.update(content)
    return digest.hexdigest()


class FolderSource:
    """Images in one folder per class: ``root/split/class/name.png``.

    Classes are numbered in the order of their names; names that are numbers by their value.

    Args:
        root: folder that holds the splits.
        split: name of the split's folder.
        classes: names of the classes in order; None takes those of the split.

    Raises:
        RequestError: no class folders, no images, a class that is not in ``classes``, or a file
            that is no image by its name.
    """

    def __init__(self, root: Path, split: str, classes: Sequence[str] | None = None) -> None:
        self.name = f"{root.name}/{split}"
        self._root = root
        folders = [path for path in (root / split).iterdir() if path.is_dir()]
        folders = [path for path in folders if not path.name.startswith(".")]
        if not folders:
            raise RequestError(f"{root / split}: has no folders; expected one folder per class")
        self.classes = list(classes or sorted((path.name for path in folders), key=_in_order))
        unknown = sorted({path.name for path in folders} - set(self.classes))
        if unknown:
            raise RequestError(
                f"{root / split}: has the class {unknown[0]!r}, which the training images do "
                f"not have; expected {', '.join(self.classes)}"
            )
        self._files = [
            (file, label)
            for label, name in enumerate(self.classes)
            for file in sorted((root / split / name).glob("*"))
            if not file.name.startswith(".")
        ]
        for file, _ in self._files:
            if file.suffix.lower() not in SUFFIXES:
                raise RequestError(
                    f"{file}: is no image by its name; expected {', '.join(sorted(SUFFIXES))}"
                )
        if not self._files:
            raise RequestError(f"{root / split}: has no images")

    def __len__(self) -> int:
        """Number of samples."""
        return len(self._files)

    def fingerprint(self) -> str:
        """A hash of the content: it changes when any sample does."""
        return hash_files([file for file, _ in self._files], self._root)

    def chunks(self) -> Iterator[list[Encoded]]:
        """The samples in their order, up to ``CHUNK`` at a time."""
        for start in range(0, len(self._files), CHUNK):
            yield [
                Encoded(_read(file), label, str(file.relative_to(self._root)))
                for file, label in self._files[start : start + CHUNK]
            ]


class HubSource:
    """One split of a data set on the Hugging Face hub, downloaded by ``datasets``.

    Args:
        repository: "owner/name".
        split: name of the split.
        columns: names that the column with the encoded samples may have.
        feature: "Image" or "Audio".

    Raises:
        RequestError: ``datasets`` is not installed, or the columns are not there.
        WorkError: the data set cannot be loaded.
    """

    def __init__(
        self, repository: str, split: str, *, columns: Sequence[str], feature: str
    ) -> None:
        try:
            import datasets
        except ImportError as error:
            raise RequestError(
                f"hub: got {repository!r}; it needs pip install 'latewood[hub]'"
            ) from error
        self.name = f"{repository} ({split})"
        try:
            data: Any = datasets.load_dataset(repository, split=split)
        except Exception as error:  # the library, the hub and the network raise what they like
            reason = str(error).strip().split("\n")[0]
            raise WorkError(
                f"hub: {repository!r}, split {split!r} cannot be loaded: "
                f"{type(error).__name__}: {reason}"
            ) from error
        self._column = pick_column(data.column_names, columns, self.name)
        self._label = pick_column(data.column_names, ("label",), self.name)
        # Kept encoded, so that one decoder reads local files and the hub's.
        as_stored = getattr(datasets, feature)(decode=False)
        self._data = data.select_columns([self._column, self._label])
        self._data = self._data.cast_column(self._column, as_stored)
        if len(self._data) == 0:
            raise RequestError(f"{self.name}: has no rows")

    def __len__(self) -> int:
        """Number of samples."""
        return len(self._data)

    def fingerprint(self) -> str:
        """A hash of the content: it changes when any sample does."""
        return content_hash(self.name, str(len(self)), str(self._data._fingerprint))

    def chunks(self) -> Iterator[list[Encoded]]:
        """The samples in their order, up to ``CHUNK`` at a time."""
        row = 0
        for rows in self._data.iter(batch_size=CHUNK):
            chunk = []
            for stored, label in zip(rows[self._column], rows[self._label], strict=True):
                origin = f"{self.name}, row {row}"
                content = stored["bytes"]
                if content is None:
                    content = _read(Path(stored["path"]))
                if label is None:
                    raise RequestError(f"{origin}: has no label")
                chunk.append(Encoded(content, label, origin))
                row += 1
            yield chunk


def _in_order(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isdecimal() else (-1, name)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise WorkError(f"{file}: cannot be read: {error.strerror}") from error
