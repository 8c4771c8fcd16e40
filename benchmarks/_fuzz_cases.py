"""Strategies of damaged bytes, texts and JSON, from sound ones."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

from hypothesis import strategies as st

__all__ = ["damaged_bytes", "damaged_json", "damaged_text", "words"]

DEEP = "[" * 5_000 + "]" * 5_000
ODD_TEXTS = ("", "²", "٣", ":", ":x", "x:", ".x:y", "a..b:c", "os:system", "\x00", "x" * 300, "é")
ODD = st.sampled_from(
    [
        *(None, True, False, -1, 0, 1.5, math.nan, math.inf, -0.0, 2**63, 10**400, -(10**400)),
        *ODD_TEXTS,
        *([], {}, [[]], [None], {"name": 3}, {"": {}}, [1, "x"], ["step"], {"step": []}),
        *({"$tensor": "0"}, {"$tensor": []}, {"$tuple": 3}, {"$pairs": [[1]]}, {"$float": "x"}),
    ]
)
ODD_VALUES = ("1e999", "nan", "[]", "{}", "-1", "0", "[[[]]]", "true", '""', "1_0", "2020-01-01")
ODD_TOML = (*ODD_TEXTS, *ODD_VALUES, "1" + "0" * 400, "1" * 5000, DEEP, '"²"', "{name='os:system'}")


@st.composite
def damaged_bytes(draw: st.DrawFn, sound: bytes) -> bytes:
    """Some bytes changed, cut out, put in, doubled, or everything after a place gone."""
    content = bytearray(sound)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(content) - 1)))
        length = draw(st.integers(1, 16))
        how = draw(st.sampled_from(["set", "cut", "put", "double", "end", "zero"]))
        if how == "set" and content:
            content[place] = draw(st.integers(0, 255))
        elif how == "cut":
            del content[place : place + length]
        elif how == "put":
            content[place:place] = draw(st.binary(min_size=1, max_size=8))
        elif how == "double":
            content[place:place] = content[place : place + length]
        elif how == "zero":
            content[place : place + length] = bytes(length)
        elif how == "end":
            del content[place:]
    return bytes(content)


@st.composite
def damaged_json(draw: st.DrawFn, sound: bytes, *, lines: bool = False) -> bytes:
    """JSON with a value replaced, a key gone or changed, or damaged as bytes."""
    if draw(st.integers(0, 3)) == 0:
        return draw(damaged_bytes(sound))
    if not lines:
        return _dumped(draw(_damaged_tree(json.loads(sound))), draw(st.booleans()))
    rows = [json.loads(line) for line in sound.splitlines()]
    damaged = [
        _dumped(draw(_damaged_tree(row)), deep=draw(st.integers(0, 9)) == 0)
        if draw(st.booleans())
        else json.dumps(row).encode()
        for row in rows[:6]
    ]
    return b"\n".join(damaged) + b"\n"


@st.composite
def damaged_text(draw: st.DrawFn, sound: str) -> str:
    """Some lines of TOML with another value, doubled, gone, or anything at all."""
    lines = sound.splitlines()
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(lines) - 1))
        key, _, value = lines[place].partition("=")
        how = draw(st.sampled_from(["value", "key", "double", "gone", "text"]))
        if how == "value":
            value = draw(st.sampled_from(ODD_TOML) | st.text(max_size=12))
            quoted = draw(st.booleans())
            lines[place] = f"{key}= {json.dumps(value) if quoted else value}"
        elif how == "key":
            lines[place] = f"{draw(st.sampled_from(ODD_TOML))} = {value}"
        elif how == "double":
            lines.insert(place, lines[place])
        elif how == "gone" and len(lines) > 1:
            del lines[place]
        elif how == "text":
            lines.insert(place, draw(st.text(max_size=30)))
    return "\n".join(lines) + "\n"


@st.composite
def words(draw: st.DrawFn, recipe: str) -> str:
    """``key.path=value``, with keys of a recipe or any, and values that are wrong or odd."""
    keys = [line.partition("=")[0].strip() for line in recipe.splitlines() if "=" in line]
    nested = [
        "model.name",
        "model",
        "task.name",
        "optimizer.lr",
        "optimizer.name",
        "methods.0.name",
    ]
    nested += ["methods[0]", "methods[²].name", "methods.1.name", "methods.0.name"]
    nested += ["model.hidden[0]", "model.hidden"]
    nested += ["schedule.per", "schedule.warmup", "probes.0.every", "methods.0.initial_logit"]
    key = draw(st.sampled_from([*keys, *nested]) | st.text(max_size=8))
    value = draw(st.sampled_from(ODD_TOML) | st.text(max_size=12))
    separator = draw(st.sampled_from(["=", "=", "=", "=", "", "=="]))
    return f"{key}{separator}{value}"


@st.composite
def _damaged_tree(draw: st.DrawFn, sound: Any) -> Any:
    tree = copy.deepcopy(sound)
    for _ in range(draw(st.integers(1, 3))):
        holder, key, place = None, None, tree
        while isinstance(place, dict | list) and place and draw(st.integers(0, 4)):
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            holder, key = place, draw(st.sampled_from(keys))
            place = holder[key]
        if holder is None:
            tree = copy.deepcopy(draw(ODD))
        elif draw(st.integers(0, 3)) == 0:
            del holder[key]
        elif isinstance(holder, dict) and draw(st.integers(0, 4)) == 0:
            holder[draw(st.sampled_from(ODD_TEXTS))] = holder.pop(key)
        else:
            holder[key] = copy.deepcopy(draw(ODD))
    return tree


def _dumped(tree: Any, deep: bool) -> bytes:
    text = json.dumps(tree)
    if deep and "null" in text:
        text = text.replace("null", DEEP * 3, 1)
    return text.encode()
