"""Segmentation by a residual network that keeps its resolution, and a head that looks far around.

Strides become dilations in the last stages; the head reads what they see at several distances.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latewood.errors import invalid
from latewood.models.parts import Initialization, initialize, require_positive
from latewood.models.resnet import BasicBlock, Bottleneck, ResNet

__all__ = ["DeepLab", "deeplab"]

_BLOCKS: dict[str, type[BasicBlock] | type[Bottleneck]] = {
    "basic": BasicBlock,
    "bottleneck": Bottleneck,
}


class Pyramid(nn.Module):
    """A 1x1 convolution, dilated 3x3 convolutions and the mean of the image, side by side."""

    def __init__(self, in_channels: int, channels: int, rates: tuple[int, ...]) -> None:
        super().__init__()
        self.near = _convolution(in_channels, channels, 1)
        self.far = nn.ModuleList(_convolution(in_channels, channels, 3, rate) for rate in rates)
        self.whole = _convolution(in_channels, channels, 1)
        self.joined = _convolution((2 + len(rates)) * channels, channels, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        whole = self.whole(inputs.mean(dim=(2, 3), keepdim=True))
        branches = [self.near(inputs), *(branch(inputs) for branch in self.far)]
        branches.append(whole.expand(-1, -1, *inputs.shape[-2:]))
        outputs: Tensor = self.joined(torch.cat(branches, dim=1))
        return outputs


class DeepLab(nn.Module):
    """A dilated residual network, a pyramid of dilated convolutions, and logits at full size."""

    def __init__(
        self,
        backbone: ResNet,
        *,
        features: int,
        channels: int,
        rates: tuple[int, ...],
        num_classes: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.pyramid = Pyramid(features, channels, rates)
        self.dropout = nn.Dropout(dropout)
        self.last = _convolution(channels, channels, 3)
        self.head = nn.Conv2d(channels, num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        features = self.dropout(self.pyramid(self.backbone(images)))
        logits = self.head(self.last(features))
        return F.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False)


def deeplab(
    *,
    num_classes: int = 1,
    in_channels: int = 3,
    block: Literal["basic", "bottleneck"] = "bottleneck",
    depths: list[int] | tuple[int, ...] = (3, 4, 23, 3),
    width: float = 1.0,
    stem: Literal["cifar", "imagenet"] = "imagenet",
    dilated: int = 1,
    channels: int = 256,
    rates: list[int] | tuple[int, ...] = (6, 12, 18),
    dropout: float = 0.5,
    init: Initialization = "kaiming_normal",
) -> DeepLab:
    """DeepLabv3: a residual network of 101 layers whose last stage is dilated, and its pyramid.

    With the stem of ImageNet the last stage is at 1/16 of the image's side for ``dilated=1`` and
    at 1/8 for 2; with that of CIFAR, at 1/4 and at 1/2.

    Args:
        num_classes: logits of a pixel.
        in_channels: channels of the image.
        block: of the residual network.
        depths: blocks of its four stages.
        width: factor on its channels, 64, 128, 256 and 512 before the block's expansion.
        stem: "imagenet" (7x7 with stride 2, then max pooling) or "cifar" (3x3).
        dilated: number of last stages whose stride becomes a dilation, 0 to 3.
        channels: of the pyramid's branches and what follows.
        rates: dilations of its 3x3 convolutions.
        dropout: probability behind the pyramid.
        init: weight initialisation.

    Returns:
        A model from images (n, in_channels, height, width) to logits
        (n, num_classes, height, width). While it trains, a batch has at least two images.

    Raises:
        RequestError: a size is not positive, or a name is unknown.

    Source: Chen et al. 2017 (arXiv 1706.05587), section 3; the 3x3 convolution before the logits
    is that of its usual implementations.
    """
    require_positive(width=width, channels=channels, num_classes=num_classes)
    if not rates or min(rates) < 1:
        raise invalid("rates", [*rates], "one or more dilations, each 1 or more")
    if len(depths) != 4 or min(depths) < 1:
        raise invalid("depths", [*depths], "four numbers of blocks, each 1 or more")
    if block not in _BLOCKS:
        raise invalid("block", block, f"one of {', '.join(_BLOCKS)}")
    if not 0 <= dilated <= 3:
        raise invalid("dilated", dilated, "a number of stages, 0 to 3")
    backbone = ResNet(
        _BLOCKS[block],
        depths=tuple(depths),
        widths=tuple(round(full * width) for full in (64, 128, 256, 512)),
        shortcut="conv_norm",
        stem=stem,
        num_classes=num_classes,
        in_channels=in_channels,
    )
    rate = 1
    for stage in range(5 - dilated, 5):
        _dilate(backbone.get_submodule(f"layer{stage}"), rate)
        rate *= 2
    features = backbone.fc.in_features
    for name in ("average", "fc"):
        backbone.add_module(name, nn.Identity())
    model = DeepLab(
        backbone,
        features=features,
        channels=channels,
        rates=tuple(rates),
        num_classes=num_classes,
        dropout=dropout,
    )
    initialize(model, init)
    return model


def _convolution(inputs: int, outputs: int, kernel: int, rate: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=rate * (kernel // 2), dilation=rate, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def _dilate(stage: nn.Module, rate: int) -> None:
    """Takes the stride out of a stage; what comes behind it looks twice as far instead."""
    for conv in stage.modules():
        if isinstance(conv, nn.Conv2d):
            dilation = rate if conv.stride == (2, 2) else 2 * rate
            conv.stride = (1, 1)
            if conv.kernel_size == (3, 3):
                conv.dilation = conv.padding = (dilation, dilation)
