"""Presets: what is searched, from which starts, at which size, and what is done afterwards."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Literal, get_args

from latewood.errors import invalid
from latewood.kernels.inpainting import Inpainting

__all__ = ["PRESETS", "Features", "Settings", "settings_of"]

Features = Literal["rgb", "lab"]

REFERENCE_SIZE = 128
"""Side of the images, in pixels, that windows and weights are stated for."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that decides a mask besides the image.

    Args:
        features: "rgb" (scaled to [-1, 1]) or "lab" (L / 50 - 1, a / 50, b / 50).
        margins: shares of the sides left free around the centred rectangle that a search starts
            from; of several searches, the one whose outline has the most contrast is taken.
        size: images whose shorter side is longer than this are searched at this size, and the
            mask is brought back to full size along the edges of the image; None searches as is.
        scaled: whether ``sigma``, ``taps`` and ``diversity`` are stated for a side of 128 pixels
            and follow the size that is searched, or are used as they are.
        polish: iterations at the end in which a majority of the nine pixels decides (the published
            smoothing, 4 of 9, makes every object a little larger).
        background_at_frame: whether the region that holds most of the frame is called background.
        sigma, taps, repetitions, downscale, diversity, iterations, neighbours: as in
            ``Inpainting``; ``diversity`` for three channels.

    Raises:
        RequestError: a value out of range.
    """

    features: Features = "rgb"
    margins: tuple[float, ...] = (0.2,)
    size: int | None = None
    scaled: bool = False
    polish: int = 0
    background_at_frame: bool = False
    sigma: float = 5.0
    taps: int = 11
    repetitions: int = 2
    downscale: int = 1
    diversity: float = 1e-3
    iterations: int = 150
    neighbours: int | None = 4

    def __post_init__(self) -> None:
        if self.features not in get_args(Features):
            raise invalid("features", self.features, "'rgb' or 'lab'")
        if (
            not isinstance(self.margins, (tuple, list))
            or not self.margins
            or not all(0 <= margin < 0.5 for margin in self.margins)
        ):
            raise invalid("margins", self.margins, "a tuple of shares, each in [0, 0.5)")
        if self.size is not None and (not isinstance(self.size, int) or self.size < 8):
            raise invalid("size", self.size, "a whole number of pixels, 8 or more, or None")
        if self.polish < 0:
            raise invalid("polish", self.polish, "0 or more")
        self.inpainting(REFERENCE_SIZE, REFERENCE_SIZE, 3)

    def inpainting(self, height: int, width: int, channels: int) -> Inpainting:
        """The search on images of this size.

        Scaled, the window grows with the shorter side, and the diversity's weight falls with the
        number of pixels, over which the diversity is a sum. A grey image counts as three equal
        channels.
        """
        sigma, taps, diversity = self.sigma, self.taps, self.diversity
        if self.scaled:
            factor = min(height, width) / REFERENCE_SIZE
            sigma *= factor
            taps = 2 * math.floor(self.taps // 2 * factor + 0.5) + 1
            diversity *= REFERENCE_SIZE**2 / (height * width)
        return Inpainting(
            sigma=sigma,
            taps=taps,
            repetitions=self.repetitions,
            downscale=self.downscale,
            diversity=diversity * 3 if channels == 1 else diversity,
            iterations=self.iterations,
            neighbours=self.neighbours,
        )


PRESETS: dict[str, Settings] = {
    "paper": Settings(),
    "robust": Settings(
        features="lab",
        margins=(0.1, 0.2, 0.25, 0.3),
        size=128,
        scaled=True,
        polish=20,
        diversity=5e-4,
    ),
    "fast": Settings(features="lab", size=64, scaled=True),
}
"""paper: the published algorithm. robust: ours, for better masks. fast: ours, at half the size."""


def settings_of(preset: str | Settings, changes: dict[str, object]) -> Settings:
    """A preset with some of its settings changed.

    Args:
        preset: a name in ``PRESETS``, or settings.
        changes: fields of ``Settings`` to replace.

    Raises:
        RequestError: an unknown preset or setting, or a value out of range.
    """
    if isinstance(preset, str):
        if preset not in PRESETS:
            raise invalid("preset", preset, f"one of {', '.join(PRESETS)}, or Settings")
        preset = PRESETS[preset]
    known = [field.name for field in fields(Settings)]
    for name in changes:
        if name not in known:
            raise invalid(name, changes[name], f"one of the settings {', '.join(known)}")
    return replace(preset, **changes)  # type: ignore[arg-type]
