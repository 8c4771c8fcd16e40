"""DeepLab: what is dilated, how far it looks, and sizes out of range."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from latewood.core import trace_channels
from latewood.core.measure import parameter_count
from latewood.errors import RequestError
from latewood.models import deeplab, resnet50

SMALL = {"block": "basic", "depths": (1, 1, 1, 2), "width": 0.0625, "channels": 8, "rates": (1, 2)}


def test_parameters_are_those_published_without_the_auxiliary_head():
    with torch.device("meta"):
        model = deeplab(num_classes=21, depths=(3, 4, 6, 3))
        backbone = parameter_count(resnet50()) - 2_049_000
    # Pyramid 2 * 524,288 + 3 * 4,718,592 + 327,680, the 3x3 589,824, seven norms, logits 5,397.
    head = 2 * 524_288 + 3 * 4_718_592 + 327_680 + 589_824 + 7 * 512 + 5_397
    assert parameter_count(model) == backbone + head == 42_004_074 - 2_365_205


@pytest.mark.parametrize(("stem", "dilated", "side"), [
    ("imagenet", 0, 2), ("imagenet", 1, 4), ("imagenet", 2, 8), ("cifar", 1, 16), ("cifar", 3, 64),
])  # fmt: skip
def test_the_resolution_that_is_kept(stem, dilated, side):
    model = deeplab(**SMALL, stem=stem, dilated=dilated).eval()
    seen = {}
    model.pyramid.register_forward_hook(lambda module, given, made: seen.update(made=made))
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 1, 64, 64)
    assert seen["made"].shape == (1, 8, side, side)


def test_what_lay_behind_a_stride_looks_twice_as_far():
    stages = deeplab(**SMALL, dilated=2).backbone
    dilations = [
        [conv.dilation[0] for conv in stage.modules() if isinstance(conv, nn.Conv2d)]
        for stage in (stages.layer2, stages.layer3, stages.layer4)
    ]
    # The shortcut's 1x1 convolution comes last in a block and has nothing to dilate.
    assert dilations == [[1, 1, 1], [1, 2, 1], [2, 4, 1, 4, 4]]
    bottleneck = deeplab(**SMALL | {"block": "bottleneck"}, dilated=1).backbone.layer4
    assert [block.conv2.dilation[0] for block in bottleneck] == [1, 2]
    assert all(c.stride == (1, 1) for c in bottleneck.modules() if isinstance(c, nn.Conv2d))


def test_dilation_instead_of_stride_keeps_the_values_at_the_old_positions():
    torch.manual_seed(0)
    dilated = deeplab(**SMALL, stem="cifar", dilated=1).eval()
    plain = deeplab(**SMALL, stem="cifar", dilated=0).eval()
    plain.load_state_dict(dilated.state_dict())
    images = torch.randn(1, 3, 64, 64)
    far, near = (
        nn.Sequential(*list(model.backbone.children())[:-2])(images) for model in (dilated, plain)
    )
    torch.testing.assert_close(far[:, :, ::2, ::2], near)


def test_all_channels_but_inputs_and_logits_can_change():
    plan = trace_channels(deeplab(**SMALL).eval(), torch.randn(1, 3, 64, 64))
    held = [group.name for group in plan if group.barriers]
    assert held == ["backbone.conv1.inputs", "head"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("rates", ()), ("rates", (0,)), ("dilated", 4), ("depths", (1, 1)), ("block", "x"),
     ("width", 0), ("channels", 0), ("num_classes", 0)],
)  # fmt: skip
def test_values_out_of_range(name, value):
    with pytest.raises(RequestError, match=name):
        deeplab(**SMALL | {name: value})
