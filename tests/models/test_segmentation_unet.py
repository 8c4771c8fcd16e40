from __future__ import annotations

import pytest
import torch

from latewood.errors import RequestError
from latewood.models import segmentation_unet


@pytest.mark.parametrize("shape", [(64, 64), (30, 45), (4, 7)])
def test_one_logit_a_pixel_at_any_size(shape):
    model = segmentation_unet(channels=[4, 8, 8])
    assert model(torch.randn(2, 3, *shape)).shape == (2, 1, *shape)


def test_parameters_by_hand():
    def block(inputs, outputs):
        return 9 * inputs * outputs + 9 * outputs**2 + 4 * outputs

    expected = block(3, 16) + block(16, 32) + block(32, 64)
    expected += block(96, 32) + block(48, 16) + 17
    assert sum(p.numel() for p in segmentation_unet().parameters()) == expected


def test_an_image_does_not_depend_on_its_batch():
    model, images = segmentation_unet(channels=[4, 4]), torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(model(images)[1:2], model(images[1:2]))


def test_every_level_reaches_the_output():
    model = segmentation_unet(channels=[4, 8, 8])
    model(torch.randn(1, 3, 16, 16)).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters())


@pytest.mark.parametrize("channels", [[16], [16, 30], [0, 4]])
def test_channels_out_of_range(channels):
    with pytest.raises(RequestError, match="channels"):
        segmentation_unet(channels=channels)
    with pytest.raises(RequestError, match="in_channels"):
        segmentation_unet(in_channels=0)
