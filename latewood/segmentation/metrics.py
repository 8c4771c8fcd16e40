"""How well masks agree with the truth, with the polarity fixed or the better one of both."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from latewood.errors import invalid

__all__ = ["evaluate_masks", "mask_scores"]


def mask_scores(predicted: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """Scores of masks, image by image; 0 / 0 counts as 0.

    With ``P`` predicted and ``T`` true: ``iou = |P & T| / |P | T|``,
    ``miou = (iou of foreground + iou of background) / 2``, ``dice = 2 |P & T| / (|P| + |T|)``,
    ``accuracy`` the share of equal pixels. Plain names take the better polarity for each measure
    on its own, as the authors' code does; names ending in "_fixed" judge the masks as they are,
    those in "_flipped" turn a mask over as a whole where that has the better accuracy.

    Args:
        predicted: bool, (n, height, width).
        truth: bool, the same shape.

    Returns:
        float64 (n,) by name, and "empty": 1 where a prediction has one region only.

    Raises:
        RequestError: no tensors, or masks of different shapes.

    Source: the authors' code.
    """
    _require_tensors(predicted=predicted, truth=truth)
    if predicted.shape != truth.shape or predicted.dim() != 3:
        raise invalid("predicted", tuple(predicted.shape), f"{tuple(truth.shape)}, as the truth")
    predicted, truth = predicted.bool(), truth.bool()
    fixed, turned = _scores(predicted, truth), _scores(~predicted, truth)
    better = turned["accuracy"] > fixed["accuracy"]
    scores = {
        name: torch.maximum(fixed[name], turned[name]) for name in ("accuracy", "iou", "dice")
    }
    scores["miou"] = (scores["iou"] + torch.maximum(fixed["background"], turned["background"])) / 2
    for name, whole in (("fixed", fixed), ("flipped", _choose(better, turned, fixed))):
        for measure in ("accuracy", "iou", "dice"):
            scores[f"{measure}_{name}"] = whole[measure]
        scores[f"miou_{name}"] = (whole["iou"] + whole["background"]) / 2
    flat = predicted.flatten(1)
    scores["empty"] = (flat.all(1) | ~flat.any(1)).double()
    return scores


def evaluate_masks(predicted: Iterable[Tensor], truth: Iterable[Tensor]) -> dict[str, float]:
    """Means over images of the measures of ``mask_scores``; sizes may differ between images.

    Args:
        predicted: bool masks (height, width).
        truth: bool masks, in the same order and of the same sizes.

    Returns:
        measure -> mean; "empty" is the share of masks with one region only, "images" their number.

    Raises:
        RequestError: no masks, what is no tensor, or another number of them than of true ones.
    """
    first, second = list(predicted), list(truth)
    for one in first:
        _require_tensors(predicted=one)
    for one in second:
        _require_tensors(truth=one)
    if not first or len(first) != len(second):
        raise invalid("predicted", f"{len(first)} masks", f"{len(second)}, one for each true mask")
    rows = [mask_scores(a[None], b[None]) for a, b in zip(first, second, strict=True)]
    means = {name: torch.cat([row[name] for row in rows]).mean().item() for name in rows[0]}
    return means | {"images": len(rows)}


def _require_tensors(**masks: object) -> None:
    for name, mask in masks.items():
        if not isinstance(mask, Tensor):
            raise invalid(name, type(mask).__name__, "masks that are torch tensors")


def _scores(predicted: Tensor, truth: Tensor) -> dict[str, Tensor]:
    def count(mask: Tensor) -> Tensor:
        return mask.sum((-2, -1)).double()

    both, neither = count(predicted & truth), count(~predicted & ~truth)
    either, sizes = count(predicted | truth), count(predicted) + count(truth)
    outside = count(~predicted | ~truth)
    return {
        "accuracy": (both + neither) / predicted[0].numel(),
        "iou": both / either.clamp(min=1),
        "background": neither / outside.clamp(min=1),
        "dice": 2 * both / sizes.clamp(min=1),
    }


def _choose(
    where: Tensor, first: dict[str, Tensor], second: dict[str, Tensor]
) -> dict[str, Tensor]:
    return {name: torch.where(where, first[name], second[name]) for name in first}
