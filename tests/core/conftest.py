"""Weight transformations that the tests of core share."""

from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from latewood.core.transforms import FAULTS, MASK, PRECISION, Follows


class Mask(nn.Module):
    """Soft and learned: one logit an entry."""

    order = MASK
    follows: ClassVar = {"logits": Follows()}

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.logits = nn.Parameter(torch.randn(shape, generator=generator))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * torch.sigmoid(self.logits.to(weight.dtype))


class Precision(nn.Module):
    """Multiplies by a learned step, then adds a constant: does not commute with a mask."""

    order = PRECISION

    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Parameter(torch.tensor(0.5))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.step.to(weight.dtype) + 0.125


class SignFormat(nn.Module):
    """A grid of two values, neither of them 0."""

    order = PRECISION
    size = 0.25

    def forward(self, weight: Tensor) -> Tensor:
        return torch.where(weight >= 0, self.size, -self.size).to(weight.dtype)


class Faults(nn.Module):
    """Nothing to learn: negates the first row."""

    order = FAULTS

    def forward(self, weight: Tensor) -> Tensor:
        return torch.cat([-weight[:1], weight[1:]])


@pytest.fixture
def mask():
    return Mask


@pytest.fixture
def precision():
    return Precision


@pytest.fixture
def sign_format():
    return SignFormat


@pytest.fixture
def faults():
    return Faults
