"""How channels pass through operations that exchange channels with places of an image."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from latewood.core.coupling.labels import NONE
from latewood.core.coupling.traced_call import Call, Result, Rule

__all__ = ["SHUFFLE_RULES"]


def _pixel_shuffle(call: Call) -> Result:
    """Blocks of r * r channels become one channel with r * r times the places."""
    inputs, factor = call.arguments("input", "upscale_factor")
    labels = _without_places(call, call.labels.of(inputs))
    blocks: Tensor = labels.unflatten(-1, (-1, int(factor) ** 2))
    call.labels.couple(blocks, blocks[..., :1])
    return blocks[..., 0].unsqueeze(-1).unsqueeze(-1)


def _pixel_unshuffle(call: Call) -> Result:
    inputs, factor = call.arguments("input", "downscale_factor")
    labels = _without_places(call, call.labels.of(inputs))
    spread = labels.repeat_interleave(int(factor) ** 2, -1)
    return spread.unsqueeze(-1).unsqueeze(-1)


def _without_places(call: Call, labels: Tensor) -> Tensor:
    """Labels (..., channels) of an image (..., channels, height, width)."""
    for dim in (-2, -1):
        if call.labels.vary(labels, dim):
            call.labels.bar(labels, "fixed", f"{call.where} moves channels along other axes")
            return torch.full((), NONE).expand(labels.shape[:-2])
    return labels[..., 0, 0]


def _channel_shuffle(call: Call) -> Result:
    """Channels at the same place of each group stay next to each other, and go together."""
    inputs, groups = call.arguments("input", "groups")
    apart: Tensor = call.labels.of(inputs).unflatten(1, (int(groups), -1))
    call.labels.couple(apart, apart[:, :1])
    call.labels.boundaries.unclear(apart, 1, range(int(groups)))
    return apart.transpose(1, 2).flatten(1, 2)


SHUFFLE_RULES: Final[dict[str, Rule]] = {
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_unshuffle,
    **dict.fromkeys(("channel_shuffle", "native_channel_shuffle"), _channel_shuffle),
}
"""Rules by the name of the operation."""
