"""Tracked vectors: as good as their certificate says, and given up where it fails."""

import torch

from latewood.spectra import factors
from latewood.spectra.solvers.subspace_tracking import EXTRA, SubspaceTracker


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


def test_tracked_values_lie_within_their_bounds():
    for shape in ((96, 300), (300, 96), (128, 128)):
        tracker = SubspaceTracker(8)
        matrix = spiked(shape)
        tracker.restart(factors(matrix, 8 + EXTRA))
        tracked = 0
        for turn in range(10):
            matrix = drift(matrix, 0.02, turn)
            found = tracker.track(matrix)
            if found is None:
                tracker.restart(factors(matrix, 8 + EXTRA))
                continue
            tracked += 1
            exact = factors(matrix.double(), 8)
            assert found.method == "warm"
            assert ((found.values.double() - exact.values[:8]).abs() <= found.errors).all()
            assert (found.errors < 5e-3 * found.values[0]).all()
            residual = matrix @ found.right - found.left * found.values
            assert (residual.norm(dim=0) <= 1.01e-3 * found.values[0]).all()
            cosines = (found.left.double() * exact.left).sum(0).abs()
            assert (cosines[:4] > 0.999).all()
        assert tracked >= 8


def test_a_flat_spectrum_is_not_certified():
    """Directions that nothing singles out cannot be tracked, and that must be noticed."""
    noise = torch.Generator().manual_seed(0)
    tracker = SubspaceTracker(8)
    tracker.restart(factors(torch.randn(128, 128, generator=noise), 8 + EXTRA))
    assert tracker.track(torch.randn(128, 128, generator=noise)) is None


def test_it_rests_after_failures():
    noise = torch.Generator().manual_seed(0)
    tracker = SubspaceTracker(4)
    calls, tries = [], []
    iterate = tracker._iterate
    tracker._iterate = lambda matrix: tries.append(len(calls)) or iterate(matrix)
    for _ in range(30):
        calls.append(1)
        tracker.restart(factors(torch.randn(64, 64, generator=noise), 4 + EXTRA))
        assert tracker.track(torch.randn(64, 64, generator=noise)) is None
    assert tries == [1, 3, 6, 11, 20, 29]
    quiet = spiked((64, 64))
    tracker.restart(factors(quiet, 4 + EXTRA))
    while tracker._rest:
        assert tracker.track(quiet) is None
    assert tracker.track(quiet).method == "warm"


def test_what_cannot_be_tracked():
    tracker = SubspaceTracker(4)
    matrix = spiked((64, 80))
    assert tracker.track(matrix) is None
    tracker.restart(factors(matrix, 4 + EXTRA))
    assert tracker.track(spiked((64, 90))) is None
    assert tracker.track(matrix) is None  # forgotten with the other shape
    tracker.restart(factors(matrix, 4 + EXTRA))
    assert tracker.track(matrix.clone().fill_(float("nan"))) is None
    tracker.restart(factors(matrix * float("inf"), 4 + EXTRA))
    tracker._rest = 0
    assert tracker.track(matrix) is None
