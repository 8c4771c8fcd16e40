"""Residual networks by depth: the narrow ones of CIFAR and the wide ones of ImageNet."""

from __future__ import annotations

from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from latewood.errors import invalid
from latewood.models.parts import (
    GlobalAveragePool,
    Initialization,
    initialize,
    require_positive,
)

__all__ = ["ResNet", "resnet", "resnet18", "resnet20", "resnet34", "resnet50", "resnet56"]

Shortcut = Literal["conv", "pad", "conv3x3", "conv_norm"]
Stem = Literal["cifar", "imagenet"]

_SHORTCUTS = get_args(Shortcut)


class PadShortcut(nn.Module):
    """Parameter-free shortcut: every ``stride``-th position, zero channels on both sides."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        before = (out_channels - in_channels) // 2
        self.padding = (0, 0, 0, 0, before, out_channels - in_channels - before)

    def forward(self, inputs: Tensor) -> Tensor:
        return F.pad(inputs[:, :, :: self.stride, :: self.stride], self.padding)


def _shortcut(kind: Shortcut, in_channels: int, out_channels: int, stride: int) -> nn.Module:
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    if kind == "pad":
        return PadShortcut(in_channels, out_channels, stride)
    if kind == "conv":
        return nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
    if kind == "conv3x3":
        return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
        nn.BatchNorm2d(out_channels),
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = _shortcut(shortcut, in_channels, channels, stride)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = F.relu(self.bn1(self.conv1(inputs)))
        return F.relu(self.bn2(self.conv2(hidden)) + self.downsample(inputs))


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride) and 1x1 convolutions beside a shortcut."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        outputs = channels * self.expansion
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = _shortcut(shortcut, in_channels, outputs, stride)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = F.relu(self.bn1(self.conv1(inputs)))
        hidden = F.relu(self.bn2(self.conv2(hidden)))
        return F.relu(self.bn3(self.conv3(hidden)) + self.downsample(inputs))


class ResNet(nn.Module):
    """A stem, stages of residual blocks (layer1, layer2, ...), global pooling and a classifier.

    Args:
        block: the residual block.
        depths: blocks of each stage.
        widths: channels of each stage before the block's expansion.
        shortcut: where the shape changes.
        stem: "cifar" is a 3x3 convolution; "imagenet" a 7x7 with stride 2 and a max pooling.
        num_classes: outputs.
        in_channels: channels of the image.

    Raises:
        RequestError: a size is not positive, or the shortcut is unknown.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        *,
        depths: tuple[int, ...],
        widths: tuple[int, ...],
        shortcut: Shortcut,
        stem: Stem,
        num_classes: int,
        in_channels: int,
    ) -> None:
        super().__init__()
        require_positive(num_classes=num_classes, in_channels=in_channels)
        if shortcut not in _SHORTCUTS:
            raise invalid("shortcut", shortcut, f"one of {', '.join(_SHORTCUTS)}")
        self.pool: nn.Module
        if stem == "imagenet":
            self.conv1 = nn.Conv2d(in_channels, widths[0], 7, stride=2, padding=3, bias=False)
            self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        elif stem == "cifar":
            self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
            self.pool = nn.Identity()
        else:
            raise invalid("stem", stem, "cifar or imagenet")
        self.bn1 = nn.BatchNorm2d(widths[0])
        channels = widths[0]
        self.stages: list[str] = []
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True), start=1):
            blocks = []
            for index in range(depth):
                stride = 2 if stage > 1 and index == 0 else 1
                blocks.append(block(channels, width, stride, shortcut))
                channels = width * block.expansion
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
            self.stages.append(f"layer{stage}")
        self.average = GlobalAveragePool()
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.pool(F.relu(self.bn1(self.conv1(inputs))))
        for stage in self.stages:
            hidden = self.get_submodule(stage)(hidden)
        outputs: Tensor = self.fc(self.average(hidden))
        return outputs


# By depth: the residual block, and how many of them each stage has. The narrow networks have three
# stages from 16 channels on, the wide ones four from 64 on.
_DEPTHS: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]] = {
    **{6 * blocks + 2: (BasicBlock, (blocks,) * 3) for blocks in (3, 5, 7, 9, 18)},
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}


def resnet(
    depth: int,
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    width: float = 1.0,
    shortcut: Shortcut | None = None,
    stem: Stem = "cifar",
    init: Initialization = "kaiming_normal",
) -> ResNet:
    """The residual network of a depth.

    20, 32, 44, 56 and 110 are those of CIFAR, three stages of basic blocks with 16, 32 and 64
    channels; 18 and 34 (basic blocks), 50, 101 and 152 (bottleneck blocks, the stride on the 3x3)
    those of ImageNet, four stages with 64, 128, 256 and 512 channels before the block's expansion
    and torchvision's parameter names.

    Args:
        depth: number of layers.
        num_classes: outputs.
        in_channels: channels of the image.
        width: factor on all channel counts.
        shortcut: where the shape changes: "conv" a 1x1 convolution, "pad" zero channels (no
            parameters), "conv3x3" a 3x3 convolution, "conv_norm" 1x1 with batch normalisation;
            None is "conv" for three stages and "conv_norm" for four.
        stem: "cifar" (3x3) or "imagenet" (7x7 with stride 2, then max pooling).
        init: weight initialisation.

    Returns:
        A model from (batch, in_channels, height, width) to (batch, num_classes).

    Raises:
        RequestError: an unknown depth, a size that is not positive, or an unknown name.

    Source: He et al. 2016 (arXiv 1512.03385), table 1 and section 4.2; there CIFAR with "pad".
    """
    if depth not in _DEPTHS:
        raise invalid("depth", depth, f"one of {', '.join(map(str, sorted(_DEPTHS)))}")
    require_positive(width=width)
    block, blocks = _DEPTHS[depth]
    channels = (16, 32, 64) if len(blocks) == 3 else (64, 128, 256, 512)
    if shortcut is None:
        shortcut = "conv" if len(blocks) == 3 else "conv_norm"
    model = ResNet(
        block,
        depths=blocks,
        widths=tuple(round(width * full) for full in channels),
        shortcut=shortcut,
        stem=stem,
        num_classes=num_classes,
        in_channels=in_channels,
    )
    initialize(model, init)
    return model


def resnet20(
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    width: float = 1.0,
    shortcut: Shortcut = "conv",
    init: Initialization = "kaiming_normal",
) -> ResNet:
    """ResNet-20 for CIFAR, three basic blocks a stage; arguments as for ``resnet``."""
    return resnet(
        20,
        num_classes=num_classes,
        in_channels=in_channels,
        width=width,
        shortcut=shortcut,
        init=init,
    )


def resnet56(
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    width: float = 1.0,
    shortcut: Shortcut = "conv",
    init: Initialization = "kaiming_normal",
) -> ResNet:
    """ResNet-56 for CIFAR, nine basic blocks a stage; arguments as for ``resnet``."""
    return resnet(
        56,
        num_classes=num_classes,
        in_channels=in_channels,
        width=width,
        shortcut=shortcut,
        init=init,
    )


def resnet18(
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    width: float = 1.0,
    stem: Stem = "cifar",
    init: Initialization = "kaiming_normal",
) -> ResNet:
    """ResNet-18, two basic blocks a stage; arguments as for ``resnet``."""
    return resnet(
        18, num_classes=num_classes, in_channels=in_channels, width=width, stem=stem, init=init
    )


def resnet34(
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    width: float = 1.0,
    stem: Stem = "cifar",
    init: Initialization = "kaiming_normal",
) -> ResNet:
    """ResNet-34, 3, 4, 6 and 3 basic blocks; arguments as for ``resnet``."""
    return resnet(
        34, num_classes=num_classes, in_channels=in_channels, width=width, stem=stem, init=init
    )


def resnet50(
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    width: float = 1.0,
    stem: Stem = "imagenet",
    init: Initialization = "kaiming_normal",
) -> ResNet:
    """ResNet-50, 3, 4, 6 and 3 bottleneck blocks; arguments as for ``resnet``."""
    return resnet(
        50, num_classes=num_classes, in_channels=in_channels, width=width, stem=stem, init=init
    )
