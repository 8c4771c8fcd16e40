"""Docstrings as the site's generator reads them: equations in MathML, an entry for every name."""

from __future__ import annotations

import re
import textwrap
from typing import Any

from griffe import Extension, Object
from latex2mathml.converter import convert

EQUATION = re.compile(r"^( *)\.\. math::(.*(?:\n\1 +\S.*)*)", re.MULTILINE)
INLINE_EQUATION = re.compile(r":math:`([^`]+)`")
SHARED_ENTRY = re.compile(r"^    (\w+(?:, \w+)+): (.*(?:\n {5,}\S.*)*)$", re.MULTILINE)


class Docstrings(Extension):
    """What mkdocstrings calls for every object before it parses the docstring."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = readable(obj.docstring.value)


def readable(text: str) -> str:
    """A docstring with browsers' equations, and with arguments that share an entry apart."""
    text = EQUATION.sub(lambda found: textwrap.indent(_block(found[2]), found[1]), text)
    text = INLINE_EQUATION.sub(lambda found: convert(found[1]), text)
    return SHARED_ENTRY.sub(_entries, text)


def _block(latex: str) -> str:
    # One line in a div: Markdown leaves what stands in it alone.
    latex = " ".join(latex.split())
    return f'<div class="equation">{convert(latex, display="block")}</div>'


def _entries(shared: re.Match[str]) -> str:
    return "\n".join(f"    {name}: {shared[2]}" for name in shared[1].split(", "))
