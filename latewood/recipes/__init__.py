"""The recipes that ship with the package: found by name and listed, without torch."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latewood.errors import invalid, nearest

__all__ = ["ShippedRecipe", "recipe_path", "shipped_recipes"]

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class ShippedRecipe:
    """A recipe of the package, as a list shows it.

    Args:
        name: what commands and ``load_recipe`` know it by.
        task: the name of its task.
        model: the name of its model; None where the task chooses.
        about: the first sentence of the comment that it opens with.
        path: its TOML file.
    """

    name: str
    task: str
    model: str | None
    about: str
    path: Path


def shipped_recipes() -> list[ShippedRecipe]:
    """All recipes that ship with the package, by name."""
    recipes = map(_summary, FOLDER.glob("*.toml"))
    return sorted(recipes, key=lambda recipe: recipe.name)


def recipe_path(recipe: str | Path) -> Path:
    """The TOML file that a path or a name means.

    Args:
        recipe: a path, or the name of a shipped recipe: no existing file, no folder in front, no
            ``.toml`` behind.

    Returns:
        The file; a path is returned as it is, whether there is such a file or not.

    Raises:
        RequestError: a name that no recipe has; it says the nearest.
    """
    path = Path(recipe)
    if path.is_file() or path.suffix == ".toml" or len(path.parts) != 1:
        return path
    names = [file.stem for file in FOLDER.glob("*.toml")]
    if path.name not in names:
        expected = "a TOML file, or a name that latewood recipes lists"
        raise invalid("recipe", str(recipe), expected + nearest(path.name, names))
    return FOLDER / f"{path.name}.toml"


def _summary(path: Path) -> ShippedRecipe:
    text = path.read_text(encoding="utf-8")
    document = tomllib.loads(text)
    comment = re.match(r"(?:#.*\n)+", text)
    lines = comment[0].splitlines() if comment else []
    opening = " ".join(line.lstrip("# ").rstrip() for line in lines)
    return ShippedRecipe(
        name=path.stem,
        task=_component(document["task"]),
        model=_component(document["model"]) if "model" in document else None,
        about=re.split(r"(?<=\.)\s", opening, maxsplit=1)[0],
        path=path,
    )


def _component(section: Any) -> str:
    return str(section["name"] if isinstance(section, dict) else section)
