"""The points of a sweep: which overrides each run gets, and what its folder is called."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from latewood.errors import RequestError, invalid

__all__ = ["Point", "folder_name", "grid_points", "listed_points", "parse_grid", "settings"]

Point = tuple[str, ...]
"""The overrides of one run, "key.path=value" each."""

_LONGEST_NAME = 100


def parse_grid(texts: Sequence[str]) -> dict[str, list[str]]:
    """The values of every key, from "key.path=a,b,c" each.

    Commas inside brackets, braces and quotes belong to a value.

    Raises:
        RequestError: a text without key or values, or a key given twice.
    """
    grid: dict[str, list[str]] = {}
    for text in texts:
        key, separator, values = text.partition("=")
        key = key.strip()
        stripped = [value.strip() for value in _split(values)]
        if not separator or not key or not all(stripped):
            raise invalid("--grid", text, "key.path=a,b,c with a value between all commas")
        if key in grid:
            raise invalid("--grid", text, f"each key once; {key!r} has values already")
        grid[key] = stripped
    return grid


def grid_points(grid: Mapping[str, Sequence[object]]) -> list[Point]:
    """All combinations of the values; the last key changes fastest.

    Args:
        grid: key path -> values: scalars, lists, or texts as in an override.

    Raises:
        RequestError: a key without values, or with a value twice.
    """
    sides = []
    for key, values in grid.items():
        texts = [_text(value) for value in values]
        if not texts or len(set(texts)) < len(texts):
            raise invalid(f"grid.{key}", list(values), "one value or more, each once")
        sides.append([f"{key}={text}" for text in texts])
    return list(itertools.product(*sides)) if sides else []


def listed_points(path: Path) -> list[Point]:
    """The points of a text file: one a line, "key=value key=value"; # starts a comment.

    Raises:
        RequestError: no such file, or a line that is not of this form.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path}: cannot be read ({error})") from error
    points = []
    for number, line in enumerate(lines, start=1):
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise RequestError(f"{path}: line {number}: {error}") from error
        if any("=" not in word for word in words):
            raise invalid(f"{path}: line {number}", line, "key=value key=value")
        if words:
            points.append(tuple(words))
    return points


def settings(point: Point) -> dict[str, Any]:
    """Key path -> value of a point, read as TOML, and as text if it is none."""
    values = {}
    for override in point:
        key, _, text = override.partition("=")
        try:
            values[key.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            values[key.strip()] = text.strip()
    return values


def folder_name(point: Point) -> str:
    """The name of a point's run folder: readable, and different for different points."""
    text = ",".join(point)
    name = re.sub(r"[^A-Za-z0-9._=,+-]", "_", text)[:_LONGEST_NAME]
    if name == text and not name.startswith("."):
        return name
    return f"{name.lstrip('.')}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _split(text: str) -> list[str]:
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter in "[{":
            depth += 1
        elif letter in "]}":
            depth -= 1
        elif letter == "," and depth == 0:
            parts.append("")
            continue
        parts[-1] += letter
    return parts


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float | list | tuple):
        return json.dumps(value)
    raise invalid("grid", value, "texts, numbers, booleans and lists of them")
