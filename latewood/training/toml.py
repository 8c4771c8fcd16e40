"""Writing TOML: the little that a recipe needs, in the order that people read it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

__all__ = ["inline_toml", "to_toml"]


def to_toml(document: Mapping[str, Any]) -> str:
    """The document as TOML: scalars first, then one table per mapping, then arrays of tables.

    Values of None are left out. Mappings inside a table are written inline.

    Args:
        document: strings, numbers, booleans, lists and mappings, nested.
    """
    present = {key: value for key, value in document.items() if value is not None}
    scalars = {key: value for key, value in present.items() if not _is_tabular(value)}
    blocks = ["".join(f"{_key(key)} = {_value(value)}\n" for key, value in scalars.items())]
    for key, value in present.items():
        if isinstance(value, Mapping):
            blocks.append(_table(f"[{_key(key)}]", value))
        elif _is_tabular(value):
            blocks.extend(_table(f"[[{_key(key)}]]", entry) for entry in value)
    return "\n".join(block for block in blocks if block)


def inline_toml(value: Any) -> str:
    """One value as TOML writes it behind a key."""
    return _value(value)


def _is_tabular(value: Any) -> bool:
    if isinstance(value, list) and value:
        return all(isinstance(entry, Mapping) for entry in value)
    return isinstance(value, Mapping)


def _table(header: str, entries: Mapping[str, Any]) -> str:
    lines = [f"{_key(key)} = {_value(value)}" for key, value in entries.items()]
    return "\n".join([header, *lines]) + "\n"


def _key(key: str) -> str:
    bare = key and all(letter.isascii() and (letter.isalnum() or letter in "-_") for letter in key)
    return key if bare else _string(key)


def _string(text: str) -> str:
    # JSON's escapes are TOML's, except that TOML also wants the delete character escaped.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        items = ((key, item) for key, item in value.items() if item is not None)
        return "{" + ", ".join(f"{_key(key)} = {_value(item)}" for key, item in items) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    raise TypeError(f"a {type(value).__name__} has no form in TOML")
