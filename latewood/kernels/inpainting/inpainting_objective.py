"""The objective of inpainting-error maximisation and its gradient in closed form, in torch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from latewood.errors import invalid

__all__ = [
    "EPSILON",
    "Evaluation",
    "Inpainting",
    "Objective",
    "evaluate",
    "filter_matrix",
    "gaussian_taps",
]

EPSILON = 1e-8
"""Weight of the visible region's mean in every prediction."""


@dataclass(frozen=True, kw_only=True)
class Inpainting:
    """The inpainter, the objective and the search.

    Args:
        sigma: standard deviation of the Gaussian window, in pixels.
        taps: length of the window, odd.
        repetitions: how often the window is applied.
        downscale: visible pixels are averaged over blocks of this side before the window.
        diversity: (lambda) weight of the spread of colours inside the regions.
        iterations: number of iterations.
        neighbours: a pixel is foreground after the smoothing if so many of the nine around it
            (itself included) were; None leaves the smoothing out.

    Raises:
        RequestError: a value out of range.
    """

    sigma: float = 5.0
    taps: int = 11
    repetitions: int = 2
    downscale: int = 1
    diversity: float = 1e-3
    iterations: int = 150
    neighbours: int | None = 4

    def __post_init__(self) -> None:
        if not 0 < self.sigma < float("inf"):
            raise invalid("sigma", self.sigma, "a positive number of pixels")
        if self.taps < 1 or self.taps % 2 == 0:
            raise invalid("taps", self.taps, "an odd number of 1 or more")
        if self.repetitions < 1:
            raise invalid("repetitions", self.repetitions, "1 or more")
        if self.downscale < 1:
            raise invalid("downscale", self.downscale, "1 or more")
        if not 0 <= self.diversity < float("inf"):
            raise invalid("diversity", self.diversity, "a finite number of 0 or more")
        if self.iterations < 0:
            raise invalid("iterations", self.iterations, "0 or more")
        if self.neighbours is not None and not 1 <= self.neighbours <= 9:
            raise invalid("neighbours", self.neighbours, "1 to 9, or None")


@dataclass(frozen=True)
class Evaluation:
    """The objective and its gradient at given masks.

    Args:
        from_background: (PF) prediction of the foreground, (n, channels, height, width).
        from_foreground: (PB) prediction of the background, likewise.
        foreground_error: (EF) float64, (n,).
        background_error: (EB) float64, (n,).
        inpainting: (J) float64, (n,).
        diversity: (D) float64, (n,).
        inpainting_gradient: of J in the mask, (n, height, width).
        diversity_gradient: of D in the mask, likewise.
    """

    from_background: Tensor
    from_foreground: Tensor
    foreground_error: Tensor
    background_error: Tensor
    inpainting: Tensor
    diversity: Tensor
    inpainting_gradient: Tensor
    diversity_gradient: Tensor


def gaussian_taps(sigma: float, taps: int) -> Tensor:
    """The window of the inpainter.

    ``w_k ~ exp(-(k - (taps - 1) / 2)^2 / (2 sigma^2))``, summing to 1.

    Args:
        sigma: standard deviation in pixels.
        taps: number of taps.

    Returns:
        float64 taps of shape (taps,).

    Source: the authors' code.
    """
    offsets = torch.arange(taps, dtype=torch.float64) - (taps - 1) / 2
    window = torch.exp(-0.5 * offsets**2 / sigma**2)
    return window / window.sum()


def filter_matrix(n: int, settings: Inpainting) -> Tensor:
    """The smoothing of the inpainter along one side, as a matrix.

    ``A = U T^repetitions P``: T is the banded Toeplitz matrix of the taps, cut at the frame; P
    averages blocks of ``downscale`` pixels and U copies every value back to its block (both the
    identity by default). The smoothing of an image is ``A_height u A_width^T``.

    Args:
        n: length of the side in pixels.
        settings: the window.

    Returns:
        Symmetric float64 matrix of shape (n, n).

    Raises:
        RequestError: if ``downscale`` does not divide the side.

    Source: the authors' code.
    """
    if n % settings.downscale:
        raise invalid("downscale", settings.downscale, f"a divisor of the side {n}")
    taps = gaussian_taps(settings.sigma, settings.taps)
    short = n // settings.downscale
    distance = torch.arange(short)[:, None] - torch.arange(short) + settings.taps // 2
    inside = (distance >= 0) & (distance < settings.taps)
    toeplitz = torch.where(inside, taps[distance.clamp(0, settings.taps - 1)], 0.0)
    smooth = torch.linalg.matrix_power(toeplitz, settings.repetitions)
    spread = torch.eye(short, dtype=torch.float64).repeat_interleave(settings.downscale, dim=0)
    matrix: Tensor = spread @ smooth @ spread.T / settings.downscale
    return matrix


def evaluate(images: Tensor, masks: Tensor, settings: Inpainting) -> Evaluation:
    """The objective ``J - lambda D`` and its gradient at masks in [0, 1], by the closed form.

    ``J = EF / |M| + EB / |1 - M|``: the mean absolute error with which either region is predicted
    from the other by normalised convolution. ``D`` is the sum over pixels and channels of squared
    distances to the mean colour of the region.

    Args:
        images: (n, channels, height, width), float32 or float64.
        masks: (n, height, width), not all 0 and not all 1.
        settings: the inpainter.

    Source: "Information-Theoretic Segmentation by Inpainting Error Maximization" (2021) and its
    authors' code.
    """
    return Objective(images, settings).evaluate(masks.to(images.dtype))


class Objective:
    """What does not change while the masks of a batch of images move.

    Args:
        images: (n, channels, height, width), float32 or float64.
        settings: the inpainter.
    """

    def __init__(self, images: Tensor, settings: Inpainting) -> None:
        height, width = images.shape[-2:]
        self.images = images
        self.rows = filter_matrix(height, settings).to(images)
        self.columns = filter_matrix(width, settings).to(images)
        whole = torch.cat((images, torch.ones_like(images[:, :1])), dim=1)
        self.smooth_whole = self.smooth(whole)
        self.totals = whole.sum((-2, -1), dtype=torch.float64)
        self.squares = images.double().square().sum((-3, -2, -1))
        # A difference of two sums leaves rounding dust where nothing is visible, and the mean
        # colour of the region, which belongs there, weighs little more than dust.
        self.dust = 1e-6 if images.dtype is torch.float32 else 1e-12

    def smooth(self, planes: Tensor) -> Tensor:
        """The planes (..., height, width) smoothed."""
        smoothed: Tensor = self.rows @ planes @ self.columns
        return smoothed

    def keep(self, indices: Tensor) -> None:
        """Drops all images but those at these indices."""
        for name in ("images", "smooth_whole", "totals", "squares"):
            setattr(self, name, getattr(self, name)[indices])

    def evaluate(self, masks: Tensor) -> Evaluation:
        """The objective at masks (n, height, width) of the images' dtype."""
        images, channels = self.images, self.images.shape[1]
        mask = masks[:, None]
        visible = torch.cat((images * mask, mask), dim=1)
        inner = visible.sum((-2, -1), dtype=torch.float64)
        outer = self.totals - inner
        size, rest = inner[:, -1], outer[:, -1]
        smooth_inner = self.smooth(visible)
        smooth_outer = self.smooth_whole - smooth_inner
        smooth_outer *= smooth_outer[:, -1:] >= self.dust

        smooth_inner += _plane(EPSILON * inner, images)
        smooth_outer += _plane(EPSILON * outer, images)
        visible_inner, visible_outer = smooth_inner[:, -1:], smooth_outer[:, -1:]
        from_background = smooth_outer[:, :-1] / visible_outer
        from_foreground = smooth_inner[:, :-1] / visible_inner
        missed_inner = images - from_background
        missed_outer = images - from_foreground
        error_inner = missed_inner.abs().sum(1) / channels
        error_outer = missed_outer.abs().sum(1) / channels
        foreground_error = (masks * error_inner).sum((-2, -1), dtype=torch.float64)
        background_error = ((1 - masks) * error_outer).sum((-2, -1), dtype=torch.float64)

        pull_inner = mask / (visible_outer * _plane(channels * inner[:, -1:], images))
        pull_outer = (1 - mask) / (visible_inner * _plane(channels * outer[:, -1:], images))
        pull_inner = missed_inner.sign() * pull_inner
        pull_outer = missed_outer.sign() * pull_outer
        push = pull_outer * from_foreground - pull_inner * from_background
        fields = torch.cat((pull_inner - pull_outer, push.sum(1, keepdim=True)), dim=1)
        sums = EPSILON * fields.sum((-2, -1), dtype=torch.float64)
        adjoint = self.smooth(fields) + _plane(sums, images)
        gradient = (images * adjoint[:, :-1]).sum(1) + adjoint[:, -1]
        gradient += error_inner / _plane(size, images)
        gradient -= error_outer / _plane(rest, images)
        gradient += _plane(background_error / rest**2 - foreground_error / size**2, images)

        mean_inner = inner[:, :-1] / size[:, None]
        mean_outer = outer[:, :-1] / rest[:, None]
        within_inner = size * mean_inner.square().sum(1)
        within_outer = rest * mean_outer.square().sum(1)
        slope = _plane(2 * (mean_outer - mean_inner), images)
        spread = (images * slope).sum(1)
        spread += _plane((mean_inner.square() - mean_outer.square()).sum(1), images)
        return Evaluation(
            from_background,
            from_foreground,
            foreground_error,
            background_error,
            foreground_error / size + background_error / rest,
            # Rounding may leave a sum of squares just below 0.
            (self.squares - within_inner - within_outer).clamp(min=0),
            gradient,
            spread,
        )


def _plane(values: Tensor, images: Tensor) -> Tensor:
    return values.to(images.dtype)[..., None, None]
