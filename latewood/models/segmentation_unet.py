"""A small U-Net that says of every pixel whether it is foreground."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latewood.errors import invalid

__all__ = ["SegmentationUNet", "segmentation_unet"]

GROUPS = 4
"""Groups of every normalisation, which looks at one image only."""


class SegmentationUNet(nn.Module):
    """Two convolutions a level, halved by pooling on the way down, joined on the way up."""

    def __init__(self, *, in_channels: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        widths = (in_channels, *channels)
        self.down = nn.ModuleList(_block(a, b) for a, b in pairwise(widths))
        self.up = nn.ModuleList(_block(low + high, high) for high, low in pairwise(channels))
        self.head = nn.Conv2d(channels[0], 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for level, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if level else x)
            skips.append(x)
        skips.pop()
        for block in reversed(self.up):
            skip = skips.pop()
            x = F.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=False)
            x = block(torch.cat((skip, x), dim=1))
        logits: Tensor = self.head(x)
        return logits


def segmentation_unet(
    *, in_channels: int = 3, channels: list[int] | tuple[int, ...] = (16, 32, 64)
) -> SegmentationUNet:
    """U-Net with group normalisation for foreground masks.

    Args:
        in_channels: channels of the image.
        channels: of the levels, from full size down; multiples of 4.

    Returns:
        A model from images (n, in_channels, height, width) to logits (n, 1, height, width), for
        sides of at least ``2 ** (levels - 1)`` pixels.

    Raises:
        RequestError: fewer than two levels, or channels that are no multiples of 4.
    """
    if in_channels < 1:
        raise invalid("in_channels", in_channels, "1 or more")
    if len(channels) < 2 or any(width < GROUPS or width % GROUPS for width in channels):
        raise invalid("channels", [*channels], f"two or more multiples of {GROUPS}")
    return SegmentationUNet(in_channels=in_channels, channels=tuple(channels))


def _block(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (inputs, outputs):
        layers += [
            nn.Conv2d(width, outputs, 3, padding=1, bias=False),
            nn.GroupNorm(GROUPS, outputs),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)
