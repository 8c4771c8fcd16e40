"""The search of inpainting-error maximisation in plain torch: the oracle of its kernels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from latewood.kernels.inpainting.inpainting_objective import Inpainting, Objective

__all__ = ["SearchResult", "ascend_reference", "boundary", "majority"]


@dataclass(frozen=True)
class SearchResult:
    """Where the search ended, image by image.

    Args:
        masks: bool, (n, height, width).
        iterations: iterations that were computed, int64, (n,).
        period: length of the cycle that the masks had entered, int64, (n,); 0 if they had not.
        degenerate: whether one region had become empty, bool, (n,); the mask is then the best of
            those before, or the start if that is all there is.
        inpainting: (J) of the masks, float64, (n,); 0 where a region is empty.
        diversity: (D) of the masks, likewise.
    """

    masks: Tensor
    iterations: Tensor
    period: Tensor
    degenerate: Tensor
    inpainting: Tensor
    diversity: Tensor


def boundary(masks: Tensor) -> Tensor:
    """Pixels with a 4-neighbour of the other class; what lies outside counts as the other class.

    Args:
        masks: bool, (n, height, width).

    Returns:
        bool, the same shape.

    Source: the authors' code.
    """
    edges = torch.zeros_like(masks)
    across = masks[..., 1:] != masks[..., :-1]
    down = masks[..., 1:, :] != masks[..., :-1, :]
    edges[..., 1:] |= across
    edges[..., :-1] |= across
    edges[..., 1:, :] |= down
    edges[..., :-1, :] |= down
    edges[..., 0] = edges[..., -1] = True
    edges[..., 0, :] = edges[..., -1, :] = True
    return edges


def majority(masks: Tensor, neighbours: int) -> Tensor:
    """Pixels around which at least ``neighbours`` of the nine pixels are foreground.

    Args:
        masks: bool, (n, height, width); what lies outside is background.
        neighbours: 1 to 9.

    Returns:
        bool, the same shape.

    Source: the authors' code, with 4.
    """
    counts = F.pad(masks.to(torch.uint8), (1, 1, 1, 1))
    counts = counts[..., :-2] + counts[..., 1:-1] + counts[..., 2:]
    counts = counts[..., :-2, :] + counts[..., 1:-1, :] + counts[..., 2:, :]
    return counts >= neighbours


def ascend_reference(images: Tensor, masks: Tensor, settings: Inpainting) -> SearchResult:
    """``ascend`` in plain torch: the oracle, on any device, in float32 and float64."""
    # One image at a time stays in a processor's cache; other devices want large batches.
    size = 1 if images.device.type == "cpu" else 1024
    parts = [
        _search(some, start, settings)
        for some, start in zip(images.split(size), masks.split(size), strict=True)
    ]
    return SearchResult(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


class _Trail:
    """The states that one image has been in, and how its search ended."""

    def __init__(self, start: bytes, *, empty: bool) -> None:
        # A dictionary keeps its order: the k-th key is the state after k iterations.
        self.states = {start: 0}
        self.scores: list[tuple[float, float]] = []
        self.steps = self.period = 0
        self.degenerate = empty

    @property
    def ended(self) -> bool:
        return self.degenerate or self.period > 0

    def add(self, state: bytes, *, empty: bool) -> None:
        self.steps += 1
        if empty:
            self.degenerate = True
        elif state in self.states:
            self.period = self.steps - self.states[state]
        else:
            self.states[state] = self.steps

    def end(self, settings: Inpainting) -> tuple[bytes, tuple[float, float]]:
        """The state that ``settings.iterations`` iterations lead to, and its J and D."""
        index = self.steps
        if self.degenerate:
            values = [j - settings.diversity * d for j, d in self.scores]
            index = values.index(max(values)) if values else 0
        elif self.period:
            first = self.steps - self.period
            index = first + (settings.iterations - first) % self.period
        return list(self.states)[index], self.scores[index] if self.scores else (0.0, 0.0)


def _search(images: Tensor, masks: Tensor, settings: Inpainting) -> tuple[Tensor, ...]:
    trails = [
        _Trail(state, empty=empty)
        for state, empty in zip(_states(masks), _empty(masks), strict=True)
    ]
    objective = Objective(images, settings)
    active = trails
    for step in range(settings.iterations + 1):
        going = [place for place, trail in enumerate(active) if not trail.ended]
        if not going:
            break
        if len(going) < len(active):
            remaining = torch.tensor(going, device=images.device)
            objective.keep(remaining)
            masks = masks[remaining]
            active = [active[place] for place in going]
        evaluation = objective.evaluate(masks.to(images.dtype))
        scores = torch.stack((evaluation.inpainting, evaluation.diversity), dim=1).tolist()
        for trail, (inpainting, diversity) in zip(active, scores, strict=True):
            trail.scores.append((inpainting, diversity))
        if step == settings.iterations:
            break
        gradient = (
            evaluation.inpainting_gradient - settings.diversity * evaluation.diversity_gradient
        )
        masks = torch.where(boundary(masks) & (gradient != 0), gradient > 0, masks)
        if settings.neighbours is not None:
            masks = majority(masks, settings.neighbours)
        for trail, state, empty in zip(active, _states(masks), _empty(masks), strict=True):
            trail.add(state, empty=empty)
    return _search_columns(trails, images, settings)


def _search_columns(
    trails: list[_Trail], images: Tensor, settings: Inpainting
) -> tuple[Tensor, ...]:
    states, scores = zip(*(trail.end(settings) for trail in trails), strict=True)
    shape = images.shape[-2:]
    packed = np.frombuffer(b"".join(states), np.uint8).reshape(len(trails), -1)
    bits = np.unpackbits(packed, axis=1, count=shape.numel())
    columns = (
        torch.from_numpy(bits).view(len(trails), *shape).bool(),
        torch.tensor([trail.steps for trail in trails]),
        torch.tensor([trail.period for trail in trails]),
        torch.tensor([trail.degenerate for trail in trails]),
        *torch.tensor(scores, dtype=torch.float64).unbind(1),
    )
    return tuple(column.to(images.device) for column in columns)


def _states(masks: Tensor) -> list[bytes]:
    return [bits.tobytes() for bits in np.packbits(masks.flatten(1).cpu().numpy(), axis=1)]


def _empty(masks: Tensor) -> list[bool]:
    """Whether one of the two regions of each mask is empty."""
    flat = masks.flatten(1)
    return (flat.all(1) | ~flat.any(1)).tolist()
