"""Matrices that the tests of this folder share."""

import pytest
import torch


@pytest.fixture(scope="session")
def worked_matrix():
    def make(m, n, a, b, c):
        i = torch.arange(1, m + 1, dtype=torch.float64)[:, None]
        j = torch.arange(1, n + 1, dtype=torch.float64)[None]
        return torch.sin(a * i * j + b * i**2 + c * j)

    return make


@pytest.fixture(scope="session")
def gaussian():
    def make(*shape, seed=0, dtype=torch.float64):
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)

    return make


@pytest.fixture(scope="session")
def orthogonal(gaussian):
    def make(n, seed=0):
        return torch.linalg.qr(gaussian(n, n, seed=seed)).Q

    return make
