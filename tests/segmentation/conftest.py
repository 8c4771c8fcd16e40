"""Small images whose foreground is known."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor


@pytest.fixture(scope="session")
def blob() -> Callable[..., tuple[Tensor, Tensor]]:
    """Makes an image of a bright disc on a dark ground, in [0, 1], and its mask."""

    def make(
        height: int = 48, width: int = 48, *, channels: int = 3, seed: int = 0
    ) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        y, x = torch.arange(height)[:, None], torch.arange(width)
        radius = 0.3 * min(height, width)
        mask = (y - (height - 1) / 2) ** 2 + (x - (width - 1) / 2) ** 2 <= radius**2
        inside = torch.tensor([0.8, 0.5, 0.3])[:channels, None, None]
        outside = torch.tensor([0.2, 0.3, 0.4])[:channels, None, None]
        noise = 0.03 * torch.randn(channels, height, width, generator=generator)
        return (torch.where(mask, inside, outside) + noise).clamp(0, 1), mask

    return make
