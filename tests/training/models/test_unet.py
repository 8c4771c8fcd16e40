"""The U-Net: dependence on the time, and the image sizes that it takes."""

import math

import pytest
import torch

from latewood.errors import RequestError
from latewood.training.models import unet
from latewood.training.models.unet import FourierFeatures


def test_fourier_features_match_the_formula() -> None:
    features = FourierFeatures(6, 30.0, 1000)
    values = features(torch.tensor([0, 250]))
    assert torch.equal(values[0], torch.tensor([0.0, 0, 0, 1, 1, 1]))
    angles = [2 * math.pi * frequency.item() / 4 for frequency in features.frequencies]
    expected = torch.tensor([*map(math.sin, angles), *map(math.cos, angles)])
    torch.testing.assert_close(values[1], expected, atol=1e-4, rtol=0)


def test_frequencies_are_kept_with_the_weights_but_not_trained() -> None:
    model = unet(channels=[32, 32, 32, 32])
    assert "fourier.frequencies" in model.state_dict()
    assert "fourier.frequencies" not in dict(model.named_parameters())


def test_output_depends_on_the_time_of_each_image() -> None:
    model = unet(channels=[32, 32, 32, 32], time_features=8)
    images = torch.randn(1, 1, 28, 28).expand(3, -1, -1, -1)
    outputs = model(images, torch.tensor([10, 500, 10]))
    torch.testing.assert_close(outputs[0], outputs[2])
    assert not torch.allclose(outputs[0], outputs[1], atol=1e-3)


@pytest.mark.parametrize("side", [12, 24, 27, 32])
def test_side_that_does_not_come_back_is_refused(side) -> None:
    model = unet(channels=[32, 32, 32, 32])
    with pytest.raises(RequestError, match="sides of 20, 28, 36"):
        model(torch.randn(2, 1, side, side), torch.zeros(2))
