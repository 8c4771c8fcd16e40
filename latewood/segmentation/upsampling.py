"""Masks of small images brought to full size along the edges of the large ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from latewood.errors import invalid

__all__ = ["downsample", "guided_upsample"]

STRIP = 4_000_000
"""Pixels of a large image that are worked on at a time."""


def downsample(image: Tensor, size: int) -> Tensor:
    """Shrinks an image so that its shorter side has ``size`` pixels, averaging what falls together.

    Args:
        image: (channels, height, width).
        size: pixels of the shorter side.

    Returns:
        (channels, ...), or the image itself where it is no larger.
    """
    height, width = image.shape[-2:]
    shorter = min(height, width)
    if shorter <= size:
        return image
    shape = [max(size, round(side * size / shorter)) for side in (height, width)]
    small = F.interpolate(
        image[None], size=shape, mode="bilinear", antialias=True, align_corners=False
    )
    # Weights that sum to 1 but for rounding may leave the range by as much.
    return small[0].clamp(0, 1)


def guided_upsample(
    mask: Tensor,
    image: Tensor,
    *,
    small: Tensor | None = None,
    radius: int = 4,
    smoothness: float = 1e-3,
) -> Tensor:
    """Brings a mask to the size of an image, so that its outline follows the image's edges.

    Around every small pixel the mask is fitted by a linear function of the colour,
    ``mask ~ a . colour + b``, with ``smoothness |a|^2`` as penalty; the functions, averaged over
    all fits that a pixel takes part in, are applied to the large image and cut at a half.

    Args:
        mask: bool, (height, width).
        image: (channels, large height, large width) in [0, 1].
        small: the image at the size of the mask, if the caller has it.
        radius: half the side of the fitted windows, in pixels of the mask.
        smoothness: squared colour distance below which edges are not followed.

    Returns:
        bool, (large height, large width).

    Raises:
        RequestError: a radius below 1 or a smoothness that is not positive.

    Source: He, Sun, "Fast Guided Filter" (2015).
    """
    if radius < 1:
        raise invalid("radius", radius, "1 or more")
    if not smoothness > 0:
        raise invalid("smoothness", smoothness, "a positive number")
    shape = mask.shape[-2:]
    if tuple(shape) == tuple(image.shape[-2:]):
        return mask
    channels = len(image)
    if small is None:
        small = F.interpolate(
            image[None], size=shape, mode="bilinear", antialias=True, align_corners=False
        )[0]
    small = small.double()
    target = mask.to(torch.float64)[None]

    def mean(planes: Tensor) -> Tensor:
        return F.avg_pool2d(planes, 2 * radius + 1, 1, radius, count_include_pad=False)

    colour, level = mean(small), mean(target)
    pairs = mean((small[:, None] * small[None]).flatten(0, 1)).unflatten(0, (channels, channels))
    spread = pairs - colour[:, None] * colour[None]
    spread = spread + smoothness * torch.eye(channels, dtype=torch.float64)[..., None, None].to(
        mask.device
    )
    shared = mean(small * target) - colour * level
    slope = torch.linalg.solve(spread.movedim((0, 1), (-2, -1)), shared.movedim(0, -1))
    slope = slope.movedim(-1, 0)
    offset = level - (slope * colour).sum(0, keepdim=True)
    functions = mean(torch.cat((slope, offset))).to(image.dtype)
    enlarged = torch.empty(image.shape[-2:], dtype=torch.bool, device=image.device)
    rows = max(1, STRIP // image.shape[-1])
    for top in range(0, len(enlarged), rows):
        strip = image[:, top : top + rows]
        applied = _enlarged_rows(functions, top, strip.shape[-2:], len(enlarged))
        enlarged[top : top + rows] = (applied[:-1] * strip).sum(0) + applied[-1] > 0.5
    return enlarged


def _enlarged_rows(planes: Tensor, top: int, shape: Sequence[int], height: int) -> Tensor:
    """Rows of planes that are enlarged by bilinear interpolation, without the other rows.

    Args:
        planes: (n, small height, small width).
        top: the first row.
        shape: (rows, width) of what is wanted.
        height: of all enlarged rows.

    Returns:
        (n, rows, width).
    """
    rows = torch.arange(top, top + shape[0], device=planes.device, dtype=torch.float64)
    position = ((rows + 0.5) * planes.shape[1] / height - 0.5).clamp(min=0)
    above = position.long().clamp(max=planes.shape[1] - 1)
    below = (above + 1).clamp(max=planes.shape[1] - 1)
    weight = (position - above).to(planes.dtype)[:, None]
    between = torch.lerp(planes[:, above], planes[:, below], weight)
    size = (between.shape[1], shape[1])
    return F.interpolate(between[None], size=size, mode="bilinear", align_corners=False)[0]
