"""Followed vectors: as good as their certificate says, and given up where it fails."""

import torch

from latewood.spectra import factors
from latewood.spectra.solvers.subspace_tracking import EXTRA, Follower


def spiked(shape, spikes=20, seed=0):
    noise = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(side, spikes, generator=noise) for side in shape)
    scales = torch.linspace(3, 1, spikes)
    bulk = torch.randn(shape, generator=noise)
    return (0.2 * bulk + (left * scales) @ right.T / 10) / shape[1] ** 0.5


def drift(matrix, size, seed):
    noise = torch.Generator().manual_seed(seed)
    step = torch.randn(matrix.shape, generator=noise)
    return matrix + size * matrix.norm() / step.norm() * step


def test_followed_values_lie_within_their_bounds():
    for shape in ((96, 300), (300, 96), (128, 128)):
        follower = Follower(8)
        matrix = spiked(shape)
        follower.restart(factors(matrix, 8 + EXTRA))
        followed = 0
        for turn in range(10):
            matrix = drift(matrix, 0.02, turn)
            found = follower.follow(matrix)
            if found is None:
                follower.restart(factors(matrix, 8 + EXTRA))
                continue
            followed += 1
            exact = factors(matrix.double(), 8)
            assert found.method == "warm"
            assert ((found.values.double() - exact.values[:8]).abs() <= found.errors).all()
            assert (found.errors < 5e-3 * found.values[0]).all()
            residual = matrix @ found.right - found.left * found.values
            assert (residual.norm(dim=0) <= 1.01e-3 * found.values[0]).all()
            cosines = (found.left.double() * exact.left).sum(0).abs()
            assert (cosines[:4] > 0.999).all()
        assert followed >= 8


def test_a_flat_spectrum_is_not_certified():
    """Directions that nothing singles out cannot be followed, and that must be noticed."""
    noise = torch.Generator().manual_seed(0)
    follower = Follower(8)
    follower.restart(factors(torch.randn(128, 128, generator=noise), 8 + EXTRA))
    assert follower.follow(torch.randn(128, 128, generator=noise)) is None


def test_it_rests_after_failures():
    noise = torch.Generator().manual_seed(0)
    follower = Follower(4)
    calls, tries = [], []
    iterate = follower._iterate
    follower._iterate = lambda matrix: tries.append(len(calls)) or iterate(matrix)
    for _ in range(30):
        calls.append(1)
        follower.restart(factors(torch.randn(64, 64, generator=noise), 4 + EXTRA))
        assert follower.follow(torch.randn(64, 64, generator=noise)) is None
    assert tries == [1, 3, 6, 11, 20, 29]
    quiet = spiked((64, 64))
    follower.restart(factors(quiet, 4 + EXTRA))
    while follower._rest:
        assert follower.follow(quiet) is None
    assert follower.follow(quiet).method == "warm"


def test_what_cannot_be_followed():
    follower = Follower(4)
    matrix = spiked((64, 80))
    assert follower.follow(matrix) is None
    follower.restart(factors(matrix, 4 + EXTRA))
    assert follower.follow(spiked((64, 90))) is None
    assert follower.follow(matrix) is None  # forgotten with the other shape
    follower.restart(factors(matrix, 4 + EXTRA))
    assert follower.follow(matrix.clone().fill_(float("nan"))) is None
    follower.restart(factors(matrix * float("inf"), 4 + EXTRA))
    follower._rest = 0
    assert follower.follow(matrix) is None
