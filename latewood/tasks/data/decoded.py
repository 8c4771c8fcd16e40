"""Decoded data on disk: every data set is decoded once, then read as tensors."""

from __future__ import annotations

import contextlib
import re
import uuid
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from latewood.kernels.user_cache import cache_folder

__all__ = ["decoded"]

FORMAT = "1"
"""Changes when what is stored does, so that old files are not read."""


def decoded(name: str, key: str, build: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors that ``build`` returns, from the cache if they are there.

    A cached file that is damaged is built again. If the cache cannot be written, the tensors are
    returned all the same, with a warning.

    Args:
        name: what is decoded; the start of the file name.
        key: hash of everything that the tensors depend on.
        build: makes the tensors.
    """
    readable = re.sub(r"[^\w.]+", "-", name).strip("-")
    path = cache_folder() / f"{readable}-{key}-{FORMAT}.safetensors"
    cached = _load(path)
    if cached is not None:
        return cached
    with _alone(path):
        # Another process may have written it while this one waited.
        cached = _load(path)
        if cached is not None:
            return cached
        tensors = build()
        try:
            _store(path, tensors)
        except OSError as error:
            warnings.warn(
                f"decoded data is not kept: {path}: {error.strerror or error}; "
                "set LATEWOOD_CACHE to a folder with room",
                stacklevel=2,
            )
        return tensors


def _load(path: Path) -> dict[str, Tensor] | None:
    """The tensors of an intact file; None if it is missing or damaged."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            stored = file.metadata() or {}
    except (SafetensorError, OSError):
        return None
    intact = all(stored.get(name) == _checksum(tensor) for name, tensor in tensors.items())
    return tensors if intact and len(stored) == len(tensors) else None


def _store(path: Path, tensors: dict[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        checksums = {name: _checksum(tensor) for name, tensor in tensors.items()}
        try:
            save_file(tensors, temporary, metadata=checksums)
        except SafetensorError as error:  # a full disk arrives as this
            raise OSError(str(error)) from error
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _checksum(tensor: Tensor) -> str:
    return str(zlib.crc32(tensor.contiguous().view(torch.uint8).numpy().data))


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Lets one process at a time decode; the others then find its file.

    Where locks are not to be had (Windows, some network disks, a folder that cannot be written)
    every process decodes for itself, which is slower and still right.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            path.parent.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(path.with_name(f".{path.name}.lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
