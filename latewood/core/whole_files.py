"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from latewood.errors import WorkError

__all__ = ["write_whole"]


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file under another name beside it, and gives it its own when it is complete.

    Args:
        path: of the file, in an existing folder; what is there is replaced.
        write: writes the file of the name that it is given, which exists and is empty.

    Raises:
        WorkError: it cannot be written. What ``write`` raises otherwise goes on as it is; nothing
            is left of the file then either.
    """
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
    except OSError as error:
        raise WorkError(f"{path}: cannot be written ({error.strerror})") from error
    temporary = Path(name)
    try:
        write(temporary)
        # As any new file has it, not as a temporary one.
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise WorkError(f"{path}: cannot be written ({error})") from error
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
