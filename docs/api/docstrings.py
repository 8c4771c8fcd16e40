"""Docstrings as the site's generator reads them: equations in MathML, an entry for every name."""

from __future__ import annotations

import contextlib
import re
import textwrap
from collections.abc import Iterator
from typing import Any

from griffe import Alias, AliasResolutionError, Extension, Module, Object
from latex2mathml.converter import convert

EQUATION = re.compile(r"^( *)\.\. math::(.*(?:\n\1 +\S.*)*)", re.MULTILINE)
INLINE_EQUATION = re.compile(r":math:`([^`]+)`")
SHARED_ENTRY = re.compile(r"^    (\w+(?:, \w+)+): (.*(?:\n {5,}\S.*)*)$", re.MULTILINE)


class Docstrings(Extension):
    """What mkdocstrings calls for every object before it parses the docstring."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = readable(obj.docstring.value)

    def on_package(self, *, pkg: Module, **_: Any) -> None:
        """Lets a room's function stand for its name, where the file it is in has the same."""
        homonyms = list(_homonyms(pkg))
        # First, since a file's other names are looked up through its own.
        for module in _modules(pkg):
            for member in module.members.values():
                if member.is_alias:
                    with contextlib.suppress(AliasResolutionError):
                        member.resolve_target()
        for room, name, target in homonyms:
            room.set_member(name, Alias(name, target, parent=room))


def _modules(package: Module) -> Iterator[Module]:
    yield package
    for module in package.modules.values():
        if not module.is_alias:
            yield from _modules(module)


def _homonyms(package: Module) -> Iterator[tuple[Module, str, Object]]:
    """Rooms, and the names that they export and that are those of one of their files as well."""
    for room in _modules(package):
        for name in map(str, room.exports or ()):
            file = room.members.get(name)
            if isinstance(file, Module) and room.imports.get(name) == f"{file.path}.{name}":
                yield room, name, file.members[name]


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
