"""The weight transformation of a given mask: what it does not keep is exactly 0."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from latewood.core import MASK, Follows

__all__ = ["BinaryMask"]


class BinaryMask(nn.Module):
    """Multiplies a weight by a binary mask and a scale, ``weight * scale * kept``.

    Args:
        kept: bool, with the weight's shape.
        scale: factor of what is kept.
    """

    order = MASK
    follows: ClassVar = {"kept": Follows()}
    kept: Tensor

    def __init__(self, kept: Tensor, *, scale: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("kept", kept.detach().clone())
        self.scale = scale

    def forward(self, weight: Tensor) -> Tensor:
        """The masked weight, 0 where not kept even if the weight there is not finite."""
        return torch.where(self.kept, weight if self.scale == 1.0 else weight * self.scale, 0)

    def extra_repr(self) -> str:
        """The mask in words."""
        density = self.kept.float().mean().item()
        return f"{tuple(self.kept.shape)}, density={density:.4g}, scale={self.scale:.6g}"
