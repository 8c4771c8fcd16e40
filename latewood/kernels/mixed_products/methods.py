"""Which widths are multiplied through tables on this machine, and which on a grid of integers."""

from __future__ import annotations

from typing import Any

__all__ = ["widths_by_table"]


def widths_by_table(module: Any) -> list[int]:
    """The widths whose products are looked up in tables of four inputs.

    Args:
        module: the compiled kernels.
    """
    return [1, 2]
