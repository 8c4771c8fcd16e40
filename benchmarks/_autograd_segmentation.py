"""Inpainting-error maximisation as one writes it with autograd: the independent oracle and peer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["objective", "search", "step"]


def objective(
    images: Tensor,
    masks: Tensor,
    *,
    sigma: float = 5.0,
    taps: int = 11,
    repetitions: int = 2,
    diversity: float = 1e-3,
) -> tuple[Tensor, Tensor]:
    """J and D of masks (n, 1, height, width) on images (n, channels, height, width)."""
    offsets = torch.arange(taps, dtype=torch.float64) - (taps - 1) / 2
    window = torch.exp(-0.5 * offsets**2 / sigma**2)
    window = (window / window.sum()).to(images)

    def predict(visible: Tensor, shown: Tensor) -> Tensor:
        stacked = torch.cat((visible, shown), dim=1)
        groups = stacked.shape[1]
        mean = 1e-8 * stacked.sum((-2, -1), keepdim=True)
        down = window.view(1, 1, -1, 1).repeat(groups, 1, 1, 1)
        across = window.view(1, 1, 1, -1).repeat(groups, 1, 1, 1)
        for _ in range(repetitions):
            stacked = F.conv2d(stacked, down, padding=(taps // 2, 0), groups=groups)
            stacked = F.conv2d(stacked, across, padding=(0, taps // 2), groups=groups)
        stacked = stacked + mean
        return stacked[:, :-1] / stacked[:, -1:]

    rest = 1 - masks
    size, other = masks.sum((1, 2, 3)), rest.sum((1, 2, 3))
    from_background = predict(images * rest, rest)
    from_foreground = predict(images * masks, masks)
    inner = (masks * (images - from_background).abs().mean(1, keepdim=True)).sum((1, 2, 3))
    outer = (rest * (images - from_foreground).abs().mean(1, keepdim=True)).sum((1, 2, 3))
    mean_inner = (masks * images).sum((-2, -1)) / size[:, None]
    mean_outer = (rest * images).sum((-2, -1)) / other[:, None]
    spread = masks * (images - mean_inner[..., None, None]) ** 2
    spread = spread + rest * (images - mean_outer[..., None, None]) ** 2
    return inner / size + outer / other, spread.sum((1, 2, 3))


def step(
    images: Tensor, masks: Tensor, *, diversity: float = 1e-3, neighbours: int = 4, **kernel: float
) -> Tensor:
    """One iteration: the masks (n, 1, height, width) after it, as 0 and 1."""
    masks = masks.detach().requires_grad_()
    errors, spread = objective(images, masks, diversity=diversity, **kernel)  # type: ignore[arg-type]
    (gradient,) = torch.autograd.grad((errors - diversity * spread).sum(), masks)
    with torch.no_grad():
        cross = images.new_tensor([[0, 1, 0], [1, 1, 1], [0, 1, 0]]).view(1, 1, 3, 3)
        counts = F.conv2d(masks, cross, padding=1)
        edges = ((masks == 1) & (counts < 5)) | (
            (masks == 0) & (F.conv2d(1 - masks, cross, padding=1) < 5)
        )
        masks = torch.where(edges & (gradient != 0), (gradient > 0).to(masks), masks)
        around = F.conv2d(masks, torch.ones_like(cross), padding=1)
        return (around >= neighbours).to(masks)


def search(images: Tensor, masks: Tensor, *, iterations: int = 150, **settings: float) -> Tensor:
    """The masks (n, height, width) after so many iterations from bool masks."""
    state = masks[:, None].to(images)
    for _ in range(iterations):
        state = step(images, state, **settings)  # type: ignore[arg-type]
    return state[:, 0] > 0.5
