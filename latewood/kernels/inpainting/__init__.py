"""Inpainting-error maximisation: the mask whose two sides predict one another worst."""

from __future__ import annotations

from torch import Tensor

from latewood.errors import invalid
from latewood.kernels.dispatch import native_for
from latewood.kernels.inpainting.inpainting_objective import (
    Evaluation,
    Inpainting,
    evaluate,
    filter_matrix,
    gaussian_taps,
)
from latewood.kernels.inpainting.native_search import ascend_native
from latewood.kernels.inpainting.reference_search import SearchResult, ascend_reference
from latewood.kernels.misfits import require_memory

__all__ = [
    "Evaluation",
    "Inpainting",
    "SearchResult",
    "ascend",
    "ascend_reference",
    "evaluate",
    "filter_matrix",
    "gaussian_taps",
]


def ascend(images: Tensor, masks: Tensor, settings: Inpainting) -> SearchResult:
    """Searches the mask with the largest objective, from a start, by signs of its gradient.

    In every iteration the pixels on the outline become foreground where the gradient of
    ``J - lambda D`` is positive and background where it is negative; then the mask is smoothed.
    A mask that comes back ends the search with the mask that all iterations would lead to. The
    result of an image depends neither on the others nor on the number of threads.

    Args:
        images: (n, channels, height, width), float32 or float64, finite.
        masks: start, bool, (n, height, width).
        settings: the inpainter, the objective and the search.

    Raises:
        RequestError: shapes or devices that do not fit together, images without pixels, memory
            that is not there.

    Source: "Information-Theoretic Segmentation by Inpainting Error Maximization" (2021) and its
    authors' code.
    """
    if images.dim() != 4 or not images.is_floating_point():
        raise invalid("images", tuple(images.shape), "floats (n, channels, height, width)")
    if masks.shape != (len(images), *images.shape[-2:]):
        raise invalid("masks", tuple(masks.shape), "(n, height, width) of the images")
    if 0 in images.shape[1:]:
        raise invalid("images", tuple(images.shape), "one channel, row and column or more")
    if masks.device != images.device:
        raise invalid("masks", str(masks.device), f"the device of the images, {images.device}")
    require_memory(images=images, masks=masks)
    # Not bool(), which leaves the bytes of what was viewed as bool as they are, 255 of them, say.
    images, masks = images.detach().contiguous(), (masks != 0).contiguous()
    compiled = native_for(images) if settings.downscale == 1 else None
    if compiled is None or not compiled.readable(masks):
        return ascend_reference(images, masks, settings)
    return ascend_native(compiled, images, masks, settings)
