"""Wide residual networks with pre-activation blocks."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from latewood.models.parts import (
    GlobalAveragePool,
    Initialization,
    initialize,
    require_positive,
)

__all__ = ["WideResNet", "wide_resnet28"]


class PreActivationBlock(nn.Module):
    """Normalisation and ReLU before each of two 3x3 convolutions.

    Where the shape changes, the first normalisation and ReLU also feed the 1x1 shortcut.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.downsample: nn.Conv2d | None = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = F.relu(self.bn1(inputs))
        shortcut = inputs if self.downsample is None else self.downsample(hidden)
        hidden = self.dropout(F.relu(self.bn2(self.conv1(hidden))))
        outputs: Tensor = self.conv2(hidden) + shortcut
        return outputs


class WideResNet(nn.Module):
    """A 3x3 stem, three stages of pre-activation blocks, a last normalisation and a classifier.

    Args:
        blocks: blocks of each stage.
        width: k, the factor on 16, 32 and 64 channels.
        num_classes: outputs.
        in_channels: channels of the image.
        dropout: probability between the two convolutions of a block.
    """

    def __init__(
        self, *, blocks: int, width: int, num_classes: int, in_channels: int, dropout: float
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.layer1 = self._stage(16, 16 * width, blocks, 1, dropout)
        self.layer2 = self._stage(16 * width, 32 * width, blocks, 2, dropout)
        self.layer3 = self._stage(32 * width, 64 * width, blocks, 2, dropout)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.average = GlobalAveragePool()
        self.fc = nn.Linear(64 * width, num_classes)

    @staticmethod
    def _stage(
        in_channels: int, channels: int, blocks: int, stride: int, dropout: float
    ) -> nn.Sequential:
        first = PreActivationBlock(in_channels, channels, stride, dropout)
        rest = [PreActivationBlock(channels, channels, 1, dropout) for _ in range(blocks - 1)]
        return nn.Sequential(first, *rest)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.layer3(self.layer2(self.layer1(self.conv1(inputs))))
        outputs: Tensor = self.fc(self.average(F.relu(self.bn1(hidden))))
        return outputs


def wide_resnet28(
    *,
    width: int = 10,
    num_classes: int = 10,
    in_channels: int = 3,
    dropout: float = 0.0,
    init: Initialization = "kaiming_normal",
) -> WideResNet:
    """WRN-28-k: three stages of four pre-activation blocks with 16k, 32k and 64k channels.

    Args:
        width: k.
        num_classes: outputs.
        in_channels: channels of the image.
        dropout: probability between the two convolutions of a block.
        init: weight initialisation.

    Returns:
        A model from (batch, in_channels, height, width) to (batch, num_classes).

    Raises:
        RequestError: a size is not positive.

    Source: Zagoruyko and Komodakis 2016 (arXiv 1605.07146), table 1.
    """
    require_positive(width=width, num_classes=num_classes, in_channels=in_channels)
    model = WideResNet(
        blocks=4, width=width, num_classes=num_classes, in_channels=in_channels, dropout=dropout
    )
    initialize(model, init)
    return model
