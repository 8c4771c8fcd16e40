"""The recipes that ship: each is valid, and those of papers say what the papers say."""

import numpy as np
import pytest
import torch

from latewood.core.groups import parameter_groups
from latewood.core.schedules import step_decay
from latewood.recipes import shipped_recipes
from latewood.tasks import batches
from latewood.training import components
from latewood.training.recipe import load_recipe

NAMES = [recipe.name for recipe in shipped_recipes()]


@pytest.mark.parametrize("name", NAMES)
def test_each_is_valid(name):
    load_recipe(name)


def test_the_kinds_of_task_of_the_papers_are_there():
    tasks = {load_recipe(name).task["name"] for name in NAMES}
    assert tasks >= {
        "digits",
        "cifar10",
        "mnist_diffusion",
        "spoken_digits",
        "shakespeare",
        "modular_addition",
    }


@pytest.mark.parametrize("name", ["cifar10-resnet20", "cifar10-resnet20-cs"])
def test_learning_rates_fall_at_the_epochs_of_the_paper(name):
    recipe = load_recipe(name)
    arguments = {key: recipe.schedule[key] for key in ("milestones", "factor")}
    schedule = step_decay(**arguments)
    for epoch in range(recipe.epochs):
        expected = 1.0 if epoch < 56 else 0.1 if epoch < 71 else 0.01
        assert schedule(epoch * 352 / (recipe.epochs * 352)) == pytest.approx(expected)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("modular-")])
def test_a_batch_is_the_whole_table(name):
    recipe = load_recipe(name)
    assert recipe.batch_size == int(recipe.task["fraction"] * recipe.task["p"] ** 2)


def test_the_vgg_of_the_spectra_paper_decays_at_its_epochs():
    recipe = load_recipe("cifar10-vgg16")
    schedule = step_decay(milestones=recipe.schedule["milestones"], factor=0.1)
    for epoch in range(164):
        expected = 0.1 ** sum(epoch >= milestone for milestone in (82, 120, 160))
        assert schedule(epoch * 352 / (164 * 352)) == pytest.approx(expected)


SPECTRA = {
    "cifar10-vgg16": (
        {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4},
        {"epochs": 164, "batch_size": 128},
    ),
    "mnist-unet-diffusion": (
        {"lr": 3e-4, "weight_decay": 0.0},
        {"epochs": 100, "batch_size": 128},
    ),
    "spoken-digits-bidirectional-lstm": (
        {"lr": 3e-4, "weight_decay": 0.1},
        {"epochs": 50, "batch_size": 32},
    ),
    "shakespeare-transformer-768": (
        {"lr": 6e-4, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1},
        {"steps": 2220, "batch_size": 256, "clip_norm": 1.0, "precision": "fp16"},
    ),
    "modular-addition": (
        {"lr": 1e-3, "betas": [0.9, 0.98], "eps": 1e-8, "weight_decay": 1.0},
        {"steps": 40000, "batch_size": 3830, "decay_all": True},
    ),
    "modular-addition-slingshot": (
        {"lr": 1e-3, "betas": [0.9, 0.98], "weight_decay": 0.0},
        {"steps": 100000, "batch_size": 6586},
    ),
    "cifar10-mlp-random-labels": (
        {"lr": 1e-3, "momentum": 0.9, "weight_decay": 0.0},
        {"epochs": 300, "batch_size": 128},
    ),
}
# Sizes that a test can afford; what is trained and how stays the recipe's.
SMALLER = {
    "cifar10-vgg16": ["task.validation=10"],
    "cifar10-mlp-random-labels": ["task.validation=10"],
    "mnist-unet-diffusion": ["task.validation=10"],
    "spoken-digits-bidirectional-lstm": [],
    "shakespeare-transformer-768": ["task.context=16", "model.layers=1"],
    "modular-addition": [],
    "modular-addition-slingshot": [],
}


@pytest.mark.parametrize("name", SPECTRA)
def test_the_protocols_of_the_spectra_paper(name):
    optimizer, run = SPECTRA[name]
    recipe = load_recipe(name)
    assert {key: recipe.optimizer[key] for key in optimizer} == optimizer
    assert {key: getattr(recipe, key) for key in run} == run
    assert [probe["name"] for probe in recipe.probes] == ["spectral"]


@pytest.fixture
def tiny_data(tmp_path, data_kit, monkeypatch):
    """All data sets that these recipes read, as small as they can be."""
    random = np.random.default_rng(0)
    for name, size, channels, column in (
        ("cifar10", (32, 32), 3, "img"),
        ("mnist", (28, 28), 1, "image"),
    ):
        pictures = data_kit.pictures(20, size=size, channels=channels)
        data_kit.parquet(
            tmp_path / name / "train-00000-of-00001.parquet",
            [data_kit.image(picture) for picture in pictures],
            [k % 10 for k in range(20)],
            column=column,
        )
    for split in ("train", "test"):
        sounds = [random.integers(-9999, 9999, 8000).astype("<i2").tobytes() for _ in range(4)]
        path = tmp_path / "spoken_digits" / f"{split}-00000-of-00001.parquet"
        data_kit.parquet(path, [data_kit.wav(s) for s in sounds], range(4), column="audio")
    (tmp_path / "shakespeare").mkdir()
    (tmp_path / "shakespeare" / "input.txt").write_text("abcd efgh " * 60)
    monkeypatch.setenv("LATEWOOD_DATA", str(tmp_path))
    monkeypatch.setenv("LATEWOOD_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize("name", SPECTRA)
def test_the_protocols_of_the_spectra_paper_take_a_step(name, tiny_data):
    recipe = load_recipe(name, SMALLER[name])
    task = components.build("task", recipe.task, "task")
    model = components.build("model", recipe.model, "model", offered=task.model_arguments)
    groups = parameter_groups(
        model, weight_decay=recipe.optimizer["weight_decay"], decay_all=recipe.decay_all
    )
    optimizer = components.build("optimizer", recipe.optimizer, "optimizer", params=groups)
    size = min(recipe.batch_size, 4 if "modular" not in name else len(task.train))
    batch, _ = next(batches(task.train, batch_size=size, seed=0, epoch=0))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    loss = task.objective.loss(model, batch, torch.Generator().manual_seed(0))
    loss.backward()
    optimizer.step()
    assert loss.isfinite()
    assert not all(map(torch.equal, before, model.parameters()))
