"""Which widths are multiplied through tables on this processor, and which on a grid of integers."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import torch

from latewood.kernels.mixed_products.code_products import CodeWeights, Taps
from latewood.kernels.mixed_products.native_products import lay_out, multiply
from latewood.kernels.mixed_products.self_test import form_in_use
from latewood.kernels.user_cache import cache_folder

__all__ = ["widths_by_table"]

_WIDTHS: Final = (1, 2)
_FORMAT: Final = "latewood product choice 1"
_SECONDS: Final = 0.025
"""For each width."""


@functools.cache
def widths_by_table(module: Any) -> list[int]:
    """The widths whose products are looked up in tables of four inputs.

    Both methods give the same sums; which one is faster depends on the processor. They are timed
    once, in 50 ms, and the answer is kept in the user's cache folder by the processor's name and
    the version of this package. A file there that cannot be read or written is ignored.

    Args:
        module: the compiled kernels, with a form in use.
    """
    key = {
        "format": _FORMAT,
        "processor": _processor(),
        "form": form_in_use(module),
        "version": _version(),
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    path = cache_folder() / f"products-{digest}.json"
    known = _read(path, key)
    if known is None:
        known = [width for width in _WIDTHS if _table_is_faster(module, width)]
        _write(path, {**key, "widths": known})
    return known


def _table_is_faster(module: Any, width: int) -> bool:
    """By the least of interleaved times of a product of 64 rows, 256 channels and 64 outputs."""
    bits = torch.full((256,), width, dtype=torch.uint8)
    codes = (torch.arange(64 * 256).reshape(64, 256, 1, 1) * 7919 % 1009) % (1 << width)
    weights = CodeWeights(codes.to(torch.uint8), bits, bits)
    inputs = weights.codes.clone()
    target = torch.empty((64, 64, 1, 1), dtype=torch.int32)
    forms = [lay_out(module, weights, tables) for tables in ([], [width])]
    least = [float("inf"), float("inf")]
    end = time.perf_counter() + _SECONDS
    while True:
        for place, prepared in enumerate(forms):
            start = time.perf_counter()
            multiply(module, prepared, inputs, target, (1, 1), Taps(), None, threads=1)
            least[place] = min(least[place], time.perf_counter() - start)
        if time.perf_counter() >= end:
            return least[1] <= least[0]


def _read(path: Path, key: dict[str, str]) -> list[int] | None:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        widths = kept["widths"]
        fits = {name: kept[name] for name in key} == key and sorted({*widths}) == widths
        return widths if fits and {*widths} <= {*_WIDTHS} else None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def _write(path: Path, answer: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(answer, file)
            Path(name).replace(path)
        finally:
            Path(name).unlink(missing_ok=True)


def _processor() -> str:
    """Its name, or at least its architecture."""
    with contextlib.suppress(OSError):
        for line in (
            Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        ):
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version() -> str:
    try:
        return metadata.version("latewood")
    except metadata.PackageNotFoundError:
        return ""
