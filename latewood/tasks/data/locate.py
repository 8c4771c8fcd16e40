"""Finds a task's data: in the folder that was named, in the usual places, or on the hub."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from latewood.errors import RequestError, invalid
from latewood.tasks.data.parquet import ParquetSource, parquet_files
from latewood.tasks.data.sources import FolderSource, HubSource, SampleSource

__all__ = ["find_folder", "open_splits"]

Feature = Literal["Image", "Audio"]


def find_folder(
    task: str, folder: str | None, *, names: Sequence[str], layout: str, hub_name: str | None = None
) -> Path:
    """The folder that holds a task's data.

    Args:
        task: the task's name.
        folder: the folder that the user named; None looks in $LATEWOOD_DATA/<name>, then in
            data/<name> of the current folder.
        names: what the data's folder may be called.
        layout: what is expected inside, in words.
        hub_name: what the data set is called on the hub, if it is there.

    Raises:
        RequestError: there is no such folder; it says where was looked and what would help.
    """
    if folder is not None:
        given = Path(folder).expanduser()
        if not given.is_dir():
            raise invalid("folder", folder, f"an existing folder with {layout}")
        return given
    root = os.environ.get("LATEWOOD_DATA")
    roots = [Path(root).expanduser()] if root else []
    places = [place / name for place in [*roots, Path("data").absolute()] for name in names]
    for place in places:
        if place.is_dir():
            return place
    unset = "" if root else " (LATEWOOD_DATA is not set)"
    download = f", or hub = {hub_name!r} (pip install 'latewood[hub]')" if hub_name else ""
    raise RequestError(
        f"folder: no data for the task {task!r}; looked for {', '.join(map(str, places))}{unset}; "
        f"expected a folder with {layout}; set folder, or LATEWOOD_DATA to the folder above it"
        f"{download}"
    )


def open_splits(
    task: str,
    splits: Sequence[str],
    *,
    folder: str | None,
    hub: str | None,
    names: Sequence[str],
    hub_name: str | None,
    columns: Sequence[str],
    feature: Feature,
) -> list[SampleSource]:
    """The encoded samples of each split.

    Args:
        task: the task's name.
        splits: names of the splits.
        folder: as in ``find_folder``.
        hub: data set on the hub, "owner/name", to use instead.
        names: as in ``find_folder``.
        hub_name: as in ``find_folder``.
        columns: names that the column with the encoded samples may have.
        feature: what the samples are; images may also lie in one folder per class.

    Raises:
        RequestError: no data, a missing split, a missing column, or both folder and hub.
        WorkError: a file is damaged, or the hub cannot be read.
    """
    if hub is not None:
        if folder is not None:
            raise invalid("hub", hub, "nothing when folder is set as well")
        return [HubSource(hub, split, columns=columns, feature=feature) for split in splits]
    patterns = " and ".join(f"{split}-*.parquet" for split in splits)
    layout = f"{patterns} (columns {' or '.join(columns)}, and label)"
    if feature == "Image":
        layout += ", or " + " and ".join(f"{split}/<class>/" for split in splits) + " of images"
    home = find_folder(task, folder, names=names, layout=layout, hub_name=hub_name)
    sources: list[SampleSource] = []
    classes: list[str] | None = None
    for split in splits:
        files = parquet_files(home, split)
        if files:
            sources.append(ParquetSource(files, columns=columns))
        elif feature == "Image" and (home / split).is_dir():
            images = FolderSource(home, split, classes)
            classes = images.classes
            sources.append(images)
        else:
            there = ", ".join(sorted(path.name for path in home.iterdir())[:8]) or "nothing"
            raise RequestError(
                f"folder: {home} has no split {split!r}; expected {layout}; found {there}"
            )
    return sources
