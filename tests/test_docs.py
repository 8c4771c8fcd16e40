"""Every Python block of the README and the tutorials runs, in order, as it stands."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import griffe
import pytest

import latewood
from latewood.training import Recipe, components

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ROOMS = sorted({*latewood.__all__, "errors"} - {"kernels"})


def blocks(page: Path) -> list[tuple[int, str]]:
    text = page.read_text(encoding="utf-8")
    return [(text.count("\n", 0, m.start(1)), m.group(1)) for m in BLOCK.finditer(text)]


@pytest.mark.parametrize(
    "page", [p for p in PAGES if blocks(p)], ids=lambda p: str(p.relative_to(ROOT))
)
def test_code_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    script = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", script)
    for line, code in blocks(page):
        # Blank lines in front keep the line numbers of a traceback those of the page.
        exec(compile("\n" * line + code, str(page), "exec"), vars(script))


def test_relative_links_lead_somewhere() -> None:
    missing = [
        f"{page.name}: {target}"
        for page in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
        if not (page.parent / target).exists()
    ]
    assert not missing


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_has_a_page_of_its_names(room: str) -> None:
    page = ROOT / "docs" / "api" / f"{room}.md"
    assert page.read_text(encoding="utf-8").startswith(f"::: latewood.{room}\n")
    assert f"- latewood.{room}: api/{room}.md\n" in (ROOT / "mkdocs.yml").read_text("utf-8")


def test_the_reference_knows_every_name_and_what_it_is() -> None:
    """A name without a docstring, or one that a file of the room shares, would be left out."""
    spec = importlib.util.spec_from_file_location("docstrings", ROOT / "docs/api/docstrings.py")
    assert spec is not None and spec.loader is not None
    docstrings = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(docstrings)
    extensions = griffe.load_extensions(docstrings.Docstrings())
    package = griffe.load("latewood", search_paths=[ROOT], extensions=extensions)
    objects = {
        f"{room}.{name}": package[room].members[name]
        for room in ROOMS
        for name in map(str, package[room].exports or ())
    }
    assert len(objects) > 200
    for path, entry in objects.items():
        assert not entry.is_module and entry.docstring, path


@pytest.mark.parametrize("kind", components.REGISTRIES)
def test_the_training_page_lists_every_name_that_a_recipe_may_use(kind: str) -> None:
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    row = re.search(rf"^\| `{kind}s?` \|(.*)\|$", page, re.MULTILINE)
    assert row
    named = re.findall(r"`(\w+)`", row[1].partition(";")[0])
    assert sorted(named) == sorted(components.REGISTRIES[kind])


def test_the_training_page_lists_every_key_of_a_recipe() -> None:
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    table = page.partition("| key | what it does |\n")[2].partition("\n\n")[0]
    named = {
        name
        for line in table.splitlines()
        for name in re.findall(r"`(\w+)`", line.split("|")[1])
        if name.islower()
    }
    sections = {"task", "model", "optimizer", "schedule", "methods", "probes"}
    assert named == set(Recipe.model_fields) - sections
