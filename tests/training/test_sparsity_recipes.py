"""The recipes of continuous sparsification: each builds its network, small, with masks on it."""

import pytest
import torch

from latewood.recipes import shipped_recipes
from latewood.sparsity import ContinuousSparsification
from latewood.training import components
from latewood.training.recipe import load_recipe

SMALLER = {
    "cifar10-resnet20-cs": (),
    "cifar10-vgg16-cs": (),
    "cifar10-wrn28-10-cs": ("model.width=1",),
    "cifar10-mobilenet-cs": ("model.width=0.125",),
    "cifar10-resnet50-cs": ("model.width=0.0625",),
    "shakespeare-lstm1500-cs": ("model.hidden=12",),
    "foreground-deeplab-cs": ("model.width=0.0625", "model.channels=8"),
}


def test_every_recipe_is_covered():
    assert {recipe.name for recipe in shipped_recipes() if recipe.name.endswith("-cs")} == set(
        SMALLER
    )


@pytest.mark.parametrize("name", SMALLER)
def test_builds_its_network_under_masks(name):
    recipe = load_recipe(name, SMALLER[name])
    fixed = {"num_classes": 10, "in_channels": 3, "image_size": 32, "vocabulary": 65}
    model = components.build("model", recipe.model, "model", offered=fixed)
    (section,) = recipe.methods
    method = components.build(
        "method", section, "methods.0", model=model, total_steps=850, steps_per_epoch=10
    )
    assert isinstance(method, ContinuousSparsification)
    masked = method.masks()
    assert len(masked) >= 4
    assert not any("norm" in each or "bias" in each or "embedding" in each for each in masked)
    assert method.metrics()["temperature"] == 1.0


def test_segmentation_keeps_shortcuts_and_last_layer_whole():
    recipe = load_recipe("foreground-deeplab-cs", SMALLER["foreground-deeplab-cs"])
    model = components.build("model", recipe.model, "model")
    weights = {name for name, value in model.named_parameters() if value.ndim == 4}
    (section,) = recipe.methods
    method = components.build(
        "method", section, "methods.0", model=model, total_steps=4, steps_per_epoch=2
    )
    masked = method.masks()
    assert {"backbone.conv1.weight", "pyramid.far.2.0.weight", "last.0.weight"} <= set(masked)
    shortcuts = {f"backbone.layer{stage}.0.downsample.0.weight" for stage in (1, 2, 3, 4)}
    assert weights - set(masked) == {"head.weight", *shortcuts}
    images = torch.randn(2, 3, 32, 32)
    assert model(images).shape == (2, 1, 32, 32)
