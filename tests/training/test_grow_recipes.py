"""The recipes that grow networks: sizes of the papers, and the method on a narrow twin of each."""

from __future__ import annotations

import pytest
import torch

from latewood.core.measure import parameter_count
from latewood.core.schedules import step_decay
from latewood.training import components
from latewood.training.recipe import load_recipe

IMAGE = {"num_classes": 10, "in_channels": 3}
TEXT = {"vocabulary": 65}

# Parameters of the full network; what narrows it for the test; an input; what its task offers.
CASES = {
    "cifar10-vgg16-grow": (14_990_922, {}, (3, 32, 32), IMAGE),
    "cifar10-resnet20-grow": (272_282, {}, (3, 32, 32), IMAGE),
    "cifar10-wrn28-grow": (36_479_194, {"width": 1}, (3, 16, 16), IMAGE),
    "cifar10-mobilenet-grow": (3_217_226, {"width": 0.25}, (3, 32, 32), IMAGE),
    "cifar10-resnet50-grow": (23_520_842, {"width": 0.125}, (3, 16, 16), IMAGE),
    "foreground-deeplab-grow": (58_625_857, {"width": 0.0625, "channels": 8}, (3, 64, 64),
                                {"in_channels": 3}),
    "shakespeare-lstm1500-grow": (36_219_065, {"hidden": 24}, None, TEXT),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_full_network_has_the_size_of_the_paper(name):
    full, _, _, offered = CASES[name]
    recipe = load_recipe(name)
    with torch.device("meta"):
        model = components.build("model", recipe.model, "model", offered=offered)
    assert parameter_count(model) == full


@pytest.mark.parametrize("name", CASES)
def test_the_method_builds_and_meets_its_budget_on_a_narrow_twin(name):
    _, narrower, shape, offered = CASES[name]
    recipe = load_recipe(name)
    torch.manual_seed(0)
    section = recipe.model | narrower
    if name == "cifar10-vgg16-grow":  # which has no narrow form; its shallow one is enough
        section = {"name": "vgg11", "hidden": [32]}
    model = components.build("model", section, "model", offered=offered)
    example = torch.randint(0, 65, (1, 8)) if shape is None else torch.randn(1, *shape)
    (own,) = recipe.methods
    given = {"model": model, "total_steps": 40, "steps_per_epoch": 10}
    method = components.build("method", own, "methods[0]", example_inputs=(example,), **given)
    slim = method.finalize().eval()
    assert 0 < method.metrics()["budget/used"] <= 1
    assert slim(example).isfinite().all()


@pytest.mark.parametrize("name", [n for n in CASES if n.startswith("cifar10")])
def test_rates_fall_at_half_and_three_quarters_of_the_epochs(name):
    recipe = load_recipe(name)
    assert recipe.epochs == 160
    schedule = step_decay(
        milestones=tuple(recipe.schedule["milestones"]), factor=recipe.schedule["factor"]
    )
    for epoch in (0, 79, 80, 119, 120, 159):
        expected = 1.0 if epoch < 80 else 0.1 if epoch < 120 else 0.01
        assert schedule(epoch / 160) == pytest.approx(expected)


def test_rates_of_the_language_model_fall_from_epoch_14_on():
    recipe = load_recipe("shakespeare-lstm1500-grow")
    schedule = step_decay(
        milestones=tuple(recipe.schedule["milestones"]), factor=recipe.schedule["factor"]
    )
    for epoch in (0, 13, 14, 15, 54):
        assert schedule(epoch / 55 + 1e-3) == pytest.approx(1.15 ** -max(0, epoch - 13))
