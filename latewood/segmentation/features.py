"""Colour features that the search runs on."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["lab_features", "rgb_features"]

# sRGB primaries with the white point D65 to CIE XYZ, each row divided by the white point's value.
_TO_XYZ = (
    (0.4124564 / 0.95047, 0.3575761 / 0.95047, 0.1804375 / 0.95047),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339 / 1.08883, 0.1191920 / 1.08883, 0.9503041 / 1.08883),
)


def rgb_features(images: Tensor) -> Tensor:
    """Scales channels from [0, 1] to [-1, 1].

    Args:
        images: (n, channels, height, width) in [0, 1].

    Returns:
        (n, channels, height, width).

    Source: the authors' code.
    """
    return 2 * images - 1


def lab_features(images: Tensor) -> Tensor:
    """Converts sRGB to CIE Lab (D65), scaled to about [-1, 1].

    ``(L / 50 - 1, a / 50, b / 50)``

    Args:
        images: (n, channels, height, width) in [0, 1]; one channel is grey, three are sRGB.

    Returns:
        (n, channels, height, width); of a grey image only L.

    Source: CIE 1976 L*a*b*, IEC 61966-2-1.
    """
    linear = torch.where(
        images <= 0.04045, images / 12.92, ((images + 0.055) / 1.055).clamp(min=0) ** 2.4
    )
    if images.shape[1] == 3:
        xyz = torch.einsum("kc,nchw->nkhw", torch.tensor(_TO_XYZ).to(images), linear)
    else:
        xyz = linear
    root = torch.where(
        xyz > (6 / 29) ** 3, xyz.clamp(min=0) ** (1 / 3), xyz * (29 / 6) ** 2 / 3 + 4 / 29
    )
    lightness = (116 * root[:, -2:-1] if images.shape[1] == 3 else 116 * root) - 16
    if images.shape[1] != 3:
        return lightness / 50 - 1
    x, y, z = root.split(1, dim=1)
    return torch.cat((lightness / 50 - 1, 10 * (x - y), 4 * (y - z)), dim=1)
