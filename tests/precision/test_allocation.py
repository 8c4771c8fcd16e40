"""Bits from curvature alone, against the closed form and against uniform bits."""

import pytest
import torch
from torch import nn

from latewood.errors import RequestError
from latewood.precision import allocate, curvature_of, quantize, quantized_layers, weight_format


def regression(seed=0):
    generator = torch.Generator().manual_seed(seed)
    deviations = torch.logspace(-1.3, 0.7, 64)
    layer = nn.Linear(64, 16, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.rand(16, 64, generator=generator) * 3.6 - 1.8)
    inputs = torch.randn(4000, 64, generator=generator) * deviations
    target = inputs @ layer.weight.detach().t()
    return (
        nn.Sequential(layer),
        deviations,
        lambda model: (model(inputs) - target).square().sum(1).mean() / 2,
    )


def test_curvature_of_a_linear_layer_is_that_of_its_inputs():
    model, deviations, loss = regression()
    found = curvature_of(model, {"0.weight": model[0].weight}, loss, samples=4)["0.weight"]
    torch.testing.assert_close(found.mean(0), deviations.square(), rtol=0.4, atol=0.01)


def test_errors_are_several_times_smaller_than_with_uniform_bits():
    model, deviations, loss = regression()
    weights = model[0].weight.detach().clone()
    allocation = allocate(model, target_bits=2.0, loss=loss, exclude=())
    assert 1.9 < allocation.average <= 2.0
    assert torch.equal(model[0].weight, weights)
    allocation.apply(model)
    scale = allocation.scales["0.weight"]
    uniform = quantize(weights / scale, 2) * scale
    excess = ((model[0].weight - weights) * deviations).square().sum()
    assert excess < ((uniform - weights) * deviations).square().sum() / 5
    assert weight_format(model[0]).bits.shape == (1, 64)


def test_first_and_last_have_8_bits():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(64, 3)
    )
    curvature = {"1.weight": torch.rand(4, 2, 3, 3) + 0.1}
    allocate(model, target_bits=2.0, curvature=curvature).apply(model)
    bits = {name: weight_format(layer).bits for name, layer, _ in quantized_layers(model)}
    assert int(bits["0"].min()) == int(bits["3"].min()) == 8
    assert bits["1"].shape == (4, 2, 1, 1) and bits["1"].float().mean() <= 2


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({}, "curvature.*neither"),
        ({"curvature": {}, "target_bits": 9.0}, "target_bits"),
        ({"curvature": {}}, r"curvature\['0\.weight'\]"),
        ({"curvature": {"0.weight": torch.zeros(16, 64)}}, "nowhere positive"),
        ({"curvature": {}, "palette": (0, 2)}, "palette"),
    ],
)
def test_bad_input(arguments, named):
    model, _, _ = regression()
    with pytest.raises(RequestError, match=named):
        allocate(model, **{"target_bits": 2.0, "exclude": (), **arguments})
