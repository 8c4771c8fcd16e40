"""Where in the user's code an optimizer was called, for warnings."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

__all__ = ["call_level"]

# Schedulers, hooks and decorators of torch wrap a step in frames that change with its versions.
_INSIDE = tuple(str(Path(file).parent) + os.sep for file in (__file__, torch.__file__ or ""))


def call_level() -> int:
    """The ``stacklevel`` at which a warning of the caller points outside this room and torch."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INSIDE):
        level, frame = level + 1, frame.f_back
    return level
