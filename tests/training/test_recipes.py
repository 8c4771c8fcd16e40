"""The recipes that ship: each is valid, and those of papers say what the papers say."""

from pathlib import Path

import pytest

from latewood.core.schedules import step_decay
from latewood.training.recipe import load_recipe

FOLDER = Path(__file__).parents[2] / "recipes"
NAMES = sorted(path.name for path in FOLDER.glob("*.toml"))


@pytest.mark.parametrize("name", NAMES)
def test_each_is_valid(name):
    load_recipe(FOLDER / name)


def test_the_kinds_of_task_of_the_papers_are_there():
    tasks = {load_recipe(FOLDER / name).task["name"] for name in NAMES}
    assert tasks >= {
        "digits",
        "cifar10",
        "mnist_diffusion",
        "spoken_digits",
        "shakespeare",
        "modular_addition",
    }


@pytest.mark.parametrize("name", ["cifar10-resnet20.toml", "cifar10-resnet20-cs.toml"])
def test_learning_rates_fall_at_the_epochs_of_the_paper(name):
    recipe = load_recipe(FOLDER / name)
    arguments = {key: recipe.schedule[key] for key in ("milestones", "factor")}
    schedule = step_decay(**arguments)
    for epoch in range(recipe.epochs):
        expected = 1.0 if epoch < 56 else 0.1 if epoch < 71 else 0.01
        assert schedule(epoch * 352 / (recipe.epochs * 352)) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["modular-addition.toml", "modular-addition-small.toml"])
def test_a_batch_is_the_whole_table(name):
    recipe = load_recipe(FOLDER / name)
    assert recipe.batch_size == int(recipe.task["fraction"] * recipe.task["p"] ** 2)
