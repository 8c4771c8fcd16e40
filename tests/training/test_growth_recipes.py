"""The recipes of growing networks: the paper's schedule, up to the full network."""

from __future__ import annotations

import pytest
import torch

from latewood.core.measure import parameter_count
from latewood.models import mobilenet_v1, resnet20, vgg11
from latewood.training import components
from latewood.training.recipe import load_recipe

FULL = {
    "cifar10-resnet20-growing": resnet20,
    "cifar10-vgg11-growing": vgg11,
    "cifar10-mobilenetv1-growing": mobilenet_v1,
}


@pytest.mark.parametrize("name", FULL)
def test_a_quarter_of_the_width_grows_to_the_full_network(name):
    recipe = load_recipe(name)
    offered = {"num_classes": 10, "in_channels": 3}
    model = components.build("model", recipe.model, "model", offered=offered)
    (section,) = recipe.methods
    growth = components.build(
        "method",
        section,
        "methods[0]",
        model=model,
        example_inputs=(torch.zeros(1, 3, 32, 32),),
        total_steps=recipe.epochs * 2,
        steps_per_epoch=2,
    )
    assert list(growth.starts) == [0, 8, 18, 30, 44, 61, 81, 105, 134]
    assert growth.costs[-1].parameters == parameter_count(FULL[name]())
    assert growth.costs[0].macs < 0.08 * growth.costs[-1].macs
