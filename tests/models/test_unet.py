"""The U-Net: dependence on the time, and the image sizes that it takes."""

import math

import pytest
import torch

from latewood.errors import RequestError
from latewood.models import unet
from latewood.models.unet import FourierFeatures


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


def test_levels_have_the_papers_strides_and_groups() -> None:
    with torch.device("meta"):
        layers = dict(unet().named_modules())
    down = [layers[f"conv{level}"] for level in (1, 2, 3, 4)]
    up = [layers[f"tconv{level}"] for level in (4, 3, 2, 1)]
    assert [conv.stride[0] for conv in down] == [1, 2, 2, 2]
    assert [conv.stride[0] for conv in up] == [2, 2, 2, 1]
    assert [conv.output_padding[0] for conv in up] == [0, 1, 1, 0]
    assert [conv.bias is not None for conv in [*down, *up]] == [False] * 7 + [True]
    assert [layers[f"norm{level}"].num_groups for level in (1, 2, 3, 4)] == [4, 32, 32, 32]
    assert [layers[f"tnorm{level}"].num_groups for level in (4, 3, 2)] == [32, 32, 32]


def test_skips_add_what_each_level_had_on_the_way_down() -> None:
    model = unet(channels=[32, 32, 32, 32], time_features=8)
    seen: dict[str, torch.Tensor] = {}
    for name, module in model.named_children():
        if "norm" in name:
            module.register_forward_hook(
                lambda _, __, output, name=name: seen.__setitem__(name, output)
            )
        if "tconv" in name:
            module.register_forward_hook(
                lambda _, inputs, __, name=name: seen.__setitem__(name, inputs[0])
            )
    model(torch.randn(2, 1, 28, 28), torch.tensor([3, 4]))
    silu = torch.nn.functional.silu
    torch.testing.assert_close(seen["tconv4"], silu(seen["norm4"]))
    for level, above in ((3, 4), (2, 3), (1, 2)):
        expected = silu(seen[f"tnorm{above}"]) + silu(seen[f"norm{level}"])
        torch.testing.assert_close(seen[f"tconv{level}"], expected)
