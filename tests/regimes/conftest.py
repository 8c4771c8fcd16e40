"""The problems whose limits are known to twelve digits."""

import pytest
import torch


@pytest.fixture
def two_features():
    return torch.tensor([[1.0, 2.0]]), torch.tensor([1.0])


@pytest.fixture
def twenty_features():
    i = torch.arange(1, 6, dtype=torch.float64)[:, None]
    j = torch.arange(1, 21, dtype=torch.float64)
    inputs = torch.sin(i * j + 0.1 * j * j)
    planted = torch.zeros(20, dtype=torch.float64)
    planted[3], planted[11] = 1.0, -0.5
    return inputs, inputs @ planted


@pytest.fixture
def gaussian():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(6, 15, generator=generator, dtype=torch.float64)
    return inputs, torch.randn(6, generator=generator, dtype=torch.float64)
