"""The order of layers from input to output, as far as their names tell."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

__all__ = ["depth_order"]

_NUMBER: Final = re.compile(r"(\d+)")
_EMBEDDINGS: Final = re.compile(
    r"(^|[._])(\w*embed\w*|wte|wpe|shared|tokens?|positions?|stem|patch_\w+)([._]|$)"
)
_HEADS: Final = re.compile(
    r"^(\w+\.)?(lm_head|head\w*|fc|classifier\w*|score|embed_out|output\w*|cls|qa_outputs)[._]"
)


def depth_order(names: Iterable[str]) -> list[str]:
    """Names of weights from input to output, as far as names tell.

    Embeddings come first and heads last; what is between follows its numbers (``layers.2`` before
    ``layers.10``), an encoder before its decoder.

    Args:
        names: full names, in any order.
    """
    return sorted(names, key=_place)


def _place(name: str) -> tuple[object, ...]:
    numbered = bool(re.search(r"\.\d+\.", name))
    place = 2
    if _HEADS.match(name):
        place = 4
    elif not numbered and _EMBEDDINGS.search(name):
        place = 0
    elif re.search(r"(^|[._])encoder[._]", name):
        place = 1
    elif re.search(r"(^|[._])decoder[._]", name):
        place = 3
    # Letters and numbers take turns, so that like is compared with like.
    pieces = _NUMBER.split(name)
    return (place, *(int(piece) if i % 2 else piece for i, piece in enumerate(pieces)))
