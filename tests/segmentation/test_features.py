from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.color import rgb2lab

from latewood.errors import RequestError
from latewood.segmentation import (
    centred_rectangle,
    downsample,
    guided_upsample,
    lab_features,
    outline_contrast,
    rgb_features,
)


def test_lab_is_that_of_scikit_image() -> None:
    pixels = torch.rand(1, 3, 9, 11, dtype=torch.float64, generator=torch.manual_seed(0))
    pixels[0, :, 0, :3] = torch.tensor([[0.0, 1.0, 0.02]] * 3, dtype=torch.float64)
    expected = rgb2lab(pixels[0].permute(1, 2, 0).numpy())
    expected = np.stack([expected[..., 0] / 50 - 1, expected[..., 1] / 50, expected[..., 2] / 50])
    np.testing.assert_allclose(lab_features(pixels)[0].numpy(), expected, atol=2e-4)


def test_lab_of_grey_is_the_lightness_of_equal_channels() -> None:
    grey = torch.linspace(0, 1, 50, dtype=torch.float64).view(1, 1, 5, 10)
    colour = lab_features(grey.expand(-1, 3, -1, -1))
    torch.testing.assert_close(lab_features(grey), colour[:, :1], atol=1e-6, rtol=0)
    assert colour[:, 1:].abs().max().item() < 1e-4


def test_rgb_is_scaled() -> None:
    values = rgb_features(torch.tensor([0.0, 0.25, 1.0]).view(1, 1, 1, 3))
    assert values.flatten().tolist() == [-1, -0.5, 1]


def test_the_papers_start() -> None:
    mask = centred_rectangle(128, 128)
    expected = torch.zeros(128, 128, dtype=torch.bool)
    expected[25:103, 25:103] = True
    assert torch.equal(mask, expected)
    for side in range(5, 400):
        assert int(centred_rectangle(side, 5).any(1).sum()) == side - 2 * (side // 5)


def test_starts_of_other_margins_and_tiny_images() -> None:
    assert int(centred_rectangle(10, 20, 0.1).sum()) == 8 * 16
    assert int(centred_rectangle(4, 3).sum()) == 2 * 1
    assert int(centred_rectangle(2, 1).sum()) == 2
    assert bool(centred_rectangle(6, 6, 0.0).all())


def test_outline_contrast_by_hand() -> None:
    image = torch.zeros(1, 2, 4, 4)
    image[:, 0, 1:3, 1:3] = 0.5
    image[:, 1, 1:3, 1:3] = -0.25
    inside = torch.zeros(1, 4, 4, dtype=torch.bool)
    inside[:, 1:3, 1:3] = True
    assert outline_contrast(image, inside).item() == pytest.approx(0.75)
    half = torch.zeros_like(inside)
    half[:, :, :2] = True
    assert outline_contrast(image, half).item() == 0
    column = torch.zeros_like(inside)
    column[:, :, 0] = True
    assert outline_contrast(image, column).item() == pytest.approx(0.75 / 2)
    assert outline_contrast(image, torch.ones_like(inside)).item() == 0


def test_shrinking_keeps_the_proportions_and_the_range() -> None:
    image = torch.rand(3, 60, 90, generator=torch.manual_seed(0))
    small = downsample(image, 20)
    assert small.shape == (3, 20, 30)
    torch.testing.assert_close(small.mean(), image.mean(), atol=0.02, rtol=0)
    assert small.min() >= 0 and small.max() <= 1
    assert downsample(image, 60) is image
    assert downsample(torch.rand(1, 10, 1000), 8).shape == (1, 8, 800)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_mask_follows_the_edges_of_the_large_image(channels: int) -> None:
    y, x = torch.arange(160)[:, None], torch.arange(160)
    truth = (y - 77.0) ** 2 + (x - 85.0) ** 2 <= 41**2
    image = torch.where(truth, 0.8, 0.3).expand(channels, -1, -1)
    small = torch.nn.functional.avg_pool2d(truth[None].float(), 5)[0] > 0.5
    plain = torch.nn.functional.interpolate(small[None, None].float(), size=(160, 160))[0, 0] > 0.5
    found = guided_upsample(small, image)
    wrong, before = int((found != truth).sum()), int((plain != truth).sum())
    assert before > 200
    assert wrong < before / 20


def test_a_mask_of_full_size_stays_as_it_is() -> None:
    mask = torch.rand(9, 9) < 0.5
    assert guided_upsample(mask, torch.rand(3, 9, 9)) is mask


def test_upsampling_out_of_range() -> None:
    mask, image = torch.zeros(4, 4, dtype=torch.bool), torch.zeros(3, 8, 8)
    with pytest.raises(RequestError, match="radius"):
        guided_upsample(mask, image, radius=0)
    with pytest.raises(RequestError, match="smoothness"):
        guided_upsample(mask, image, smoothness=0)
