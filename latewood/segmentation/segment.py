"""The call that segments images: presets, mixed lists, and what is returned for each image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from latewood.errors import invalid
from latewood.kernels.inpainting import Inpainting, ascend
from latewood.segmentation.features import lab_features, rgb_features
from latewood.segmentation.image_tensors import pictures
from latewood.segmentation.initial_masks import centred_rectangle, outline_contrast
from latewood.segmentation.settings import Settings, settings_of
from latewood.segmentation.upsampling import downsample, guided_upsample

__all__ = ["Segmentation", "segment"]

CONSTANT = 1e-5
"""Range of every feature below which an image has nothing to segment but rounding."""


@dataclass(frozen=True)
class Segmentation:
    """The two regions of one image.

    Args:
        mask: bool, (height, width) of the image; true is foreground.
        score: (J) mean error with which the regions predict one another, summed over both, at
            the size that was searched; 0 where nothing was.
        diversity: (D) spread of the colours inside the regions, likewise.
        contrast: mean change of the features across the outline, likewise.
        iterations: iterations that were computed.
        period: length of the cycle that the mask had entered; 1 is a fixed point, 0 none.
        margin: margin of the start that was taken; nan for a start that was given.
        flags: "constant" (nothing to segment, the mask is the start), "degenerate" (a region
            became empty, the mask is the best one before), "unsettled" (no cycle was entered).
    """

    mask: Tensor
    score: float
    diversity: float
    contrast: float
    iterations: int
    period: int
    margin: float
    flags: tuple[str, ...]


def segment(
    images: Any,
    *,
    preset: str | Settings = "paper",
    start: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    **changes: Any,
) -> Any:
    """Splits images into foreground and background, by the error of predicting one from the other.

    No labels, no training, no weights: for every image the mask is searched whose two regions
    predict one another worst. The mask of an image depends neither on the other images nor on the
    number of threads.

    Args:
        images: an image, a batch in one tensor or array, or a list of any of these: tensors
            (height, width), (channels, height, width), (n, channels, height, width); arrays with
            channels last; Pillow images; paths. uint8, uint16, or floats in [0, 1]; transparent
            pixels lie on white.
        preset: "paper" (the published algorithm), "robust" (ours: better masks), "fast" (ours, at
            half the size), or ``Settings``.
        start: bool (height, width), the mask to start from instead of centred rectangles, of the
            size that is searched.
        dtype: float32 or float64.
        **changes: settings that differ from the preset's, for example ``iterations=50``.

    Returns:
        A ``Segmentation``, or a list of them for a batch or a list.

    Raises:
        RequestError: not an image, values out of range, an unknown preset or setting.
        WorkError: a file that cannot be read.

    Source: "Information-Theoretic Segmentation by Inpainting Error Maximization" (2021) and its
    authors' code for the preset "paper".
    """
    if dtype not in (torch.float32, torch.float64):
        raise invalid("dtype", dtype, "torch.float32 or torch.float64")
    settings = settings_of(preset, changes)
    given, single = pictures(images, dtype)
    found: list[Segmentation | None] = [None] * len(given)
    small = [
        image if settings.size is None else downsample(image, settings.size) for image in given
    ]
    for group in _groups(small):
        some = torch.stack([small[i] for i in group])
        for i, result in zip(group, _segment(some, settings, start), strict=True):
            mask = guided_upsample(result.mask, given[i], small=small[i])
            found[i] = replace(result, mask=mask)
    return found[0] if single else found


def _groups(images: Sequence[Tensor], largest: int = 64) -> Iterator[list[int]]:
    """Indices of images with the same shape and device, not too many at a time."""
    alike: dict[tuple[object, ...], list[int]] = {}
    for i, image in enumerate(images):
        alike.setdefault((*image.shape, image.device), []).append(i)
    for indices in alike.values():
        size = largest if images[indices[0]].device.type == "cpu" else 1024
        for begin in range(0, len(indices), size):
            yield indices[begin : begin + size]


def _segment(images: Tensor, settings: Settings, start: Tensor | None) -> list[Segmentation]:
    n, channels, height, width = images.shape
    features = lab_features(images) if settings.features == "lab" else rgb_features(images)
    search = settings.inpainting(height, width, channels)
    values = features.flatten(2)
    varied = ((values.amax(2) - values.amin(2)) >= CONSTANT).any(1)
    margins = list(settings.margins)
    starts = [centred_rectangle(height, width, margin) for margin in margins]
    if start is not None:
        if tuple(start.shape) != (height, width):
            raise invalid("start", tuple(start.shape), f"{(height, width)}, the size searched")
        margins, starts = [float("nan")], [start.bool()]
    results = [_constant(starts[0].to(images.device), margins[0])] * n
    chosen = varied.nonzero().flatten()
    if len(chosen):
        searched = [
            _search(features[chosen], first.to(images.device), margin, search)
            for first, margin in zip(starts, margins, strict=True)
        ]
        # Of equal ones the first: margins come in the order of preference.
        best = [
            max(runs, key=lambda run: ("degenerate" not in run.flags, run.contrast))
            for runs in zip(*searched, strict=True)
        ]
        if settings.polish:
            best = _polished(features[chosen], best, search, settings.polish)
        for i, result in zip(chosen.tolist(), best, strict=True):
            results[i] = result
    if settings.background_at_frame:
        results = [replace(result, mask=_background_at_frame(result.mask)) for result in results]
    return results


def _search(
    features: Tensor, start: Tensor, margin: float, search: Inpainting
) -> list[Segmentation]:
    found = ascend(features, start.expand(len(features), -1, -1), search)
    contrast = outline_contrast(features, found.masks).tolist()
    results = []
    for i, mask in enumerate(found.masks):
        period, degenerate = int(found.period[i]), bool(found.degenerate[i])
        results.append(
            Segmentation(
                mask=mask,
                score=found.inpainting[i].item(),
                diversity=found.diversity[i].item(),
                contrast=contrast[i],
                iterations=int(found.iterations[i]),
                period=period,
                margin=margin,
                flags=("degenerate",) if degenerate else () if period else ("unsettled",),
            )
        )
    return results


def _polished(
    features: Tensor, results: list[Segmentation], search: Inpainting, iterations: int
) -> list[Segmentation]:
    masks = torch.stack([result.mask for result in results])
    found = ascend(features, masks, replace(search, iterations=iterations, neighbours=5))
    contrast = outline_contrast(features, found.masks).tolist()
    return [
        replace(
            result,
            mask=found.masks[i],
            score=found.inpainting[i].item(),
            diversity=found.diversity[i].item(),
            contrast=contrast[i],
            iterations=result.iterations + int(found.iterations[i]),
        )
        for i, result in enumerate(results)
    ]


def _constant(start: Tensor, margin: float) -> Segmentation:
    return Segmentation(start, 0.0, 0.0, 0.0, 0, 0, margin, ("constant",))


def _background_at_frame(mask: Tensor) -> Tensor:
    """The mask turned over if most of the frame is foreground."""
    frame = torch.ones_like(mask)
    frame[1:-1, 1:-1] = False
    return ~mask if 2 * int((mask & frame).sum()) > int(frame.sum()) else mask
