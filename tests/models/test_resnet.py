"""Shortcuts of the residual networks and the names of their layers."""

import torch

from latewood.models import resnet20, resnet50, wide_resnet28
from latewood.models.resnet import BasicBlock, PadShortcut
from latewood.models.wide_resnet import PreActivationBlock


def test_padding_shortcut_keeps_every_second_position_and_adds_zero_channels() -> None:
    inputs = torch.randn(2, 4, 6, 6)
    outputs = PadShortcut(4, 8, 2)(inputs)
    assert outputs.shape == (2, 8, 3, 3)
    assert torch.equal(outputs[:, 2:6], inputs[:, :, ::2, ::2])
    assert outputs[:, :2].count_nonzero() == outputs[:, 6:].count_nonzero() == 0


def test_block_without_its_branch_is_the_shortcut() -> None:
    block = BasicBlock(4, 8, 2, "conv").eval()
    torch.nn.init.zeros_(block.bn2.weight)
    inputs = torch.randn(2, 4, 6, 6)
    assert torch.equal(block(inputs), block.downsample(inputs).relu())
    same = BasicBlock(4, 4, 1, "conv").eval()
    torch.nn.init.zeros_(same.bn2.weight)
    assert torch.equal(same(inputs), inputs.relu())


def test_pre_activation_feeds_the_shortcut_only_where_the_shape_changes() -> None:
    inputs = torch.randn(2, 4, 6, 6)
    changing = PreActivationBlock(4, 8, 2, 0.0).eval()
    torch.nn.init.zeros_(changing.conv2.weight)
    assert torch.equal(changing(inputs), changing.downsample(changing.bn1(inputs).relu()))
    keeping = PreActivationBlock(4, 4, 1, 0.0).eval()
    torch.nn.init.zeros_(keeping.conv2.weight)
    assert keeping.downsample is None
    assert torch.equal(keeping(inputs), inputs)


def test_layer_names_are_readable() -> None:
    with torch.device("meta"):
        narrow, wide = dict(resnet20().named_modules()), dict(resnet50().named_modules())
        pre_activation = dict(wide_resnet28(width=1).named_modules())
    assert narrow["layer1.0.conv1"].weight.shape == (16, 16, 3, 3)
    assert narrow["layer3.0.downsample"].weight.shape == (64, 32, 1, 1)
    assert wide["layer4.2.conv3"].weight.shape == (2048, 512, 1, 1)
    assert wide["layer1.0.downsample.0"].stride == (1, 1)
    assert wide["layer2.0.conv2"].stride == (2, 2)
    assert pre_activation["layer2.0.conv1"].stride == (2, 2)
