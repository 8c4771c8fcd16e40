"""The settings of a recipe by their paths, as in ``optimizer.lr`` and ``methods.0.density``."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from typing import Any

from latewood.errors import RequestError

__all__ = ["apply_setting", "flat_settings"]


def flat_settings(document: Mapping[str, Any]) -> dict[str, Any]:
    """What a document holds as one flat dict, with the paths that ``apply_setting`` takes.

    Trackers compare, sort and filter runs by such names.

    Args:
        document: a recipe as nested dicts and lists; what is None is left out.

    Returns:
        Numbers, strings and switches by path; empty dicts and lists as their text.
    """
    settings: dict[str, Any] = {}

    def collect(value: Any, path: str) -> None:
        if isinstance(value, Mapping) and value:
            for key, inner in value.items():
                collect(inner, f"{path}.{key}" if path else str(key))
        elif isinstance(value, list | tuple) and value:
            for index, inner in enumerate(value):
                collect(inner, f"{path}.{index}")
        elif value is not None:
            settings[path] = value if isinstance(value, bool | int | float | str) else str(value)

    collect(document, "")
    return settings


def apply_setting(document: dict[str, Any], override: str) -> None:
    """Sets one "key.path=value" in a document read from TOML.

    Args:
        document: changed in place.
        override: the path has dots between keys and numbers for items of lists, as in
            ``methods.0.name`` or ``methods[0].name``; the value is TOML, or else a string.

    Raises:
        RequestError: no path, or one that leads through a value without keys.
    """
    key, separator, text = override.partition("=")
    parts = [part for part in re.split(r"[.\[\]]+", key.strip()) if part]
    if not separator or not parts:
        raise RequestError(f"--set: got {override!r}; expected key.path=value")
    value = _parsed(text.strip())
    place: Any = document
    for depth, part in enumerate(parts[:-1]):
        inner = _child(place, part, override, default=[] if _is_index(parts[depth + 1]) else {})
        if isinstance(inner, str):  # a bare name gains arguments
            inner = {"name": inner}
            _put(place, part, inner, override)
        elif not isinstance(inner, dict | list):
            raise RequestError(
                f"--set: got {override!r}; {'.'.join(parts[: depth + 1])!r} is {inner!r} and has "
                "no keys"
            )
        place = inner
    _put(place, parts[-1], value, override)
    # The length of a run is one choice with two spellings, so the override takes the file's place.
    if parts in (["epochs"], ["steps"]):
        document.pop("steps" if parts == ["epochs"] else "epochs", None)


def _child(place: Any, part: str, override: str, default: Any) -> Any:
    if isinstance(place, list):
        index = _index(place, part, override)
        if index == len(place):
            place.append(default)
        return place[index]
    return place.setdefault(part, default)


def _put(place: Any, part: str, value: Any, override: str) -> None:
    if isinstance(place, list):
        index = _index(place, part, override)
        place[index : index + 1] = [value]
    else:
        place[part] = value


def _is_index(part: str) -> bool:
    return part.isascii() and part.isdigit() and len(part) < 10


def _index(place: list[Any], part: str, override: str) -> int:
    if not _is_index(part) or int(part) > len(place):
        raise RequestError(f"--set: got {override!r}; expected a list index 0 to {len(place)}")
    return int(part)


def _parsed(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text
