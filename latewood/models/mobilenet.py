"""Networks of depthwise separable convolutions."""

from __future__ import annotations

from typing import Literal

from torch import nn

from latewood.errors import invalid
from latewood.models.parts import (
    GlobalAveragePool,
    Initialization,
    initialize,
    require_positive,
)

__all__ = ["mobilenet_v1"]

_OUTPUTS_AND_STRIDES = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *[(512, 1)] * 5,
    (1024, 2),
    (1024, 1),
)


def _separable(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    block = nn.Sequential()
    block.add_module(
        "depthwise",
        nn.Conv2d(
            in_channels, in_channels, 3, stride=stride, padding=1, groups=in_channels, bias=False
        ),
    )
    block.add_module("norm1", nn.BatchNorm2d(in_channels))
    block.add_module("relu1", nn.ReLU())
    block.add_module("pointwise", nn.Conv2d(in_channels, out_channels, 1, bias=False))
    block.add_module("norm2", nn.BatchNorm2d(out_channels))
    block.add_module("relu2", nn.ReLU())
    return block


def mobilenet_v1(
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    width: float = 1.0,
    stem: Literal["cifar", "imagenet"] = "cifar",
    init: Initialization = "kaiming_normal",
) -> nn.Sequential:
    """MobileNetV1: a 3x3 stem and thirteen depthwise separable blocks, 1024 channels at the end.

    Args:
        num_classes: outputs.
        in_channels: channels of the image.
        width: factor on all channel counts.
        stem: "imagenet" has stride 2 in the stem, "cifar" stride 1.
        init: weight initialisation.

    Returns:
        A model from (batch, in_channels, height, width) to (batch, num_classes).

    Raises:
        RequestError: a size is not positive, or the stem is unknown.

    Source: Howard et al. 2017 (arXiv 1704.04861), table 1.
    """
    require_positive(num_classes=num_classes, in_channels=in_channels, width=width)
    if stem not in ("cifar", "imagenet"):
        raise invalid("stem", stem, "cifar or imagenet")
    channels = round(32 * width)
    stride = 2 if stem == "imagenet" else 1
    model = nn.Sequential()
    model.add_module(
        "conv1", nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
    )
    model.add_module("norm1", nn.BatchNorm2d(channels))
    model.add_module("relu1", nn.ReLU())
    for index, (full_outputs, block_stride) in enumerate(_OUTPUTS_AND_STRIDES, start=1):
        outputs = round(full_outputs * width)
        model.add_module(f"block{index}", _separable(channels, outputs, block_stride))
        channels = outputs
    model.add_module("pool", GlobalAveragePool())
    model.add_module("head", nn.Linear(channels, num_classes))
    initialize(model, init)
    return model
