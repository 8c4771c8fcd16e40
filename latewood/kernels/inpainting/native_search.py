"""The search of inpainting-error maximisation on the CPU: an image a unit of work."""

from __future__ import annotations

from dataclasses import fields
from types import ModuleType

import torch
from torch import Tensor

from latewood.kernels.inpainting.inpainting_objective import Inpainting, gaussian_taps
from latewood.kernels.inpainting.reference_search import SearchResult

__all__ = ["ascend_native"]


def ascend_native(
    compiled: ModuleType, images: Tensor, masks: Tensor, settings: Inpainting
) -> SearchResult:
    """`ascend_reference` of float32 images on the CPU without ``downscale``; see there."""
    n, channels, height, width = images.shape
    reach = settings.taps // 2
    result = SearchResult(
        torch.empty_like(masks),
        torch.empty(n, dtype=torch.int64),
        torch.empty(n, dtype=torch.int64),
        torch.empty(n, dtype=torch.bool),
        torch.empty(n, dtype=torch.float64),
        torch.empty(n, dtype=torch.float64),
    )
    compiled.inpainting_ascend(
        images,
        masks,
        *(getattr(result, field.name) for field in fields(result)),
        n,
        channels,
        height,
        width,
        gaussian_taps(settings.sigma, settings.taps)[reach:].tolist(),
        settings.repetitions,
        settings.neighbours or 0,
        settings.diversity,
        settings.iterations,
        torch.get_num_threads(),
    )
    return result
