"""Where the user's cached files lie."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_folder"]


def cache_folder() -> Path:
    """Where cached files are kept: $LATEWOOD_CACHE, else latewood in the user's cache folder."""
    folder = os.environ.get("LATEWOOD_CACHE")
    if folder:
        return Path(folder).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "latewood"
