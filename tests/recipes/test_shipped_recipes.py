"""The recipes of the package: a name finds its file, a path stays a path, mistakes explained."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import latewood
from latewood.errors import RequestError
from latewood.recipes import recipe_path, shipped_recipes
from latewood.training.recipe import load_recipe

FOLDER = Path(latewood.__file__).parent / "recipes"


def test_every_file_is_listed_by_its_name_and_says_what_it_is() -> None:
    listed = shipped_recipes()
    assert [recipe.name for recipe in listed] == sorted(path.stem for path in FOLDER.glob("*.toml"))
    for recipe in listed:
        assert recipe.about.endswith("."), recipe
        assert load_recipe(recipe.name).task["name"] == recipe.task
        assert (load_recipe(recipe.name).model or {"name": None})["name"] == recipe.model


def test_a_sentence_goes_on_over_lines() -> None:
    (resnet,) = (recipe for recipe in shipped_recipes() if recipe.name == "cifar10-resnet20")
    assert (resnet.task, resnet.model) == ("cifar10", "resnet20")
    assert resnet.about.startswith("ResNet-20 on CIFAR-10, the dense protocol")
    assert resnet.about.endswith("crop and flip, 85 epochs.")


def test_a_file_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert recipe_path("digits-mlp") == FOLDER / "digits-mlp.toml"
    (tmp_path / "digits-mlp").mkdir()  # a run's folder, say
    assert recipe_path("digits-mlp") == FOLDER / "digits-mlp.toml"
    shutil.rmtree(tmp_path / "digits-mlp")
    (tmp_path / "digits-mlp").write_text("")
    assert recipe_path(Path("digits-mlp")) == Path("digits-mlp")


@pytest.mark.parametrize("path", ["digits-mlp.toml", "recipes/digits-mlp", "/digits-mlp"])
def test_a_path_is_never_a_name(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match="cannot be read"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("digit-mlp", "; did you mean 'digits-mlp'?"), ("nothing", "lists"), ("..", "lists")],
)
def test_an_unknown_name(name: str, hint: str) -> None:
    with pytest.raises(RequestError) as refused:
        load_recipe(name)
    assert str(refused.value).startswith(f"recipe: got {name!r}; expected a TOML file")
    assert str(refused.value).endswith(hint)


def test_modules_are_not_looked_for_beside_shipped_recipes(tmp_path: Path) -> None:
    assert load_recipe("digits-mlp").folders == (Path.cwd(),)
    copied = shutil.copy(FOLDER / "digits-mlp.toml", tmp_path)
    assert load_recipe(copied).folders == (tmp_path, Path.cwd())


def test_the_list_comes_without_torch() -> None:
    code = (
        "import sys\nfrom latewood.cli import main\n"
        "try: main(['recipes'])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'pydantic'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    head, *lines = done.stdout.splitlines()
    assert head.split() == ["recipe", "task", "model", "about"]
    assert [line.split()[0] for line in lines] == [recipe.name for recipe in shipped_recipes()]
