"""Drawn images whose foreground is known: one texture inside a shape, over another texture."""

from __future__ import annotations

from functools import cache
from typing import Literal

import torch
from skimage import data
from torch import Tensor

__all__ = ["composites"]

TEXTURES = ("brick", "grass", "gravel", "moon")


def composites(
    n: int, *, size: int = 128, seed: int = 0, colours: Literal["any", "warm on green"] = "any"
) -> tuple[Tensor, Tensor]:
    """Composites of scikit-image's grey textures in random shapes, colours and light.

    Args:
        n: number of images.
        size: side in pixels.
        seed: seed of everything random.
        colours: of foreground and background: at RGB distance 0.35 in any direction, or warm on
            green in all images, so that the appearance tells the class.

    Returns:
        Images (n, 3, size, size) in [0, 1] and masks bool (n, size, size).
    """
    generator = torch.Generator().manual_seed(seed)
    pairs = [_composite(size, generator, colours) for _ in range(n)]
    return torch.stack([image for image, _ in pairs]), torch.stack([mask for _, mask in pairs])


def _composite(size: int, generator: torch.Generator, colours: str) -> tuple[Tensor, Tensor]:
    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator)

    mask = _shape(size, generator)
    first, second = torch.randperm(len(TEXTURES), generator=generator)[:2].tolist()
    if colours == "any":
        ground = uniform(0.3, 0.7, 3)
        direction = torch.randn(3, generator=generator)
        figure = ground + 0.35 * direction / direction.norm()
    else:
        ground = torch.tensor([0.30, 0.45, 0.25]) + uniform(-0.1, 0.1, 3)
        figure = torch.tensor([0.65, 0.45, 0.25]) + uniform(-0.12, 0.12, 3)
    image = torch.where(
        mask,
        figure[:, None, None] + _texture(first, size, generator),
        ground[:, None, None] + _texture(second, size, generator),
    )
    ramp = torch.linspace(-0.5, 0.5, size)
    light = uniform(-0.15, 0.15, 2)
    image = image + light[0] * ramp + light[1] * ramp[:, None]
    image = image + 0.02 * torch.randn(3, size, size, generator=generator)
    return image.clamp(0, 1), mask


def _shape(size: int, generator: torch.Generator) -> Tensor:
    """A disc with a wavy edge of 8 to 30 % of the image, near its centre."""
    centre = size * (0.5 + 0.16 * (torch.rand(2, generator=generator) - 0.5))
    y = torch.arange(size)[:, None] - centre[0]
    x = torch.arange(size) - centre[1]
    angle = torch.atan2(y, x)
    radius = size * (0.18 + 0.1 * torch.rand((), generator=generator))
    edge = torch.ones_like(angle)
    for waves in (2, 3, 5):
        depth, phase = torch.rand(2, generator=generator)
        edge = edge + 0.3 * depth / waves * torch.sin(waves * angle + 6.28 * phase)
    return (y**2 + x**2).sqrt() <= radius * edge


def _texture(index: int, size: int, generator: torch.Generator) -> Tensor:
    grey = _grey(TEXTURES[index])
    top, left = (int(torch.randint(side - size, (), generator=generator)) for side in grey.shape)
    cut = grey[top : top + size, left : left + size]
    return 0.4 * (cut - cut.mean())


@cache
def _grey(name: str) -> Tensor:
    return torch.from_numpy(getattr(data, name)().copy()).float() / 255
