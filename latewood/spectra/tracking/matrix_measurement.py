"""From the matrices of one moment to their spectra, on whatever thread or process it runs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latewood.spectra.solvers.gram_spectrum import GRAM_RANK
from latewood.spectra.solvers.leading_vectors import Factors, factors, factors_together
from latewood.spectra.solvers.subspace_tracking import EXTRA, SubspaceTracker
from latewood.spectra.solvers.symmetric_eigen import blas_threads
from latewood.spectra.tracking.matrix_sampling import MatrixSample
from latewood.spectra.tracking.spectrum import Spectrum

__all__ = ["MatrixMeasurement", "MatrixMeasurer", "rehearse_measuring"]

# Entries up to which a matrix is decomposed together with others of its shape.
_SMALL = 2**16


@dataclass(frozen=True)
class MatrixMeasurement:
    """The decomposition of one matrix.

    Args:
        spectrum: its singular values, and the vectors to keep.
        factors: the same in full precision; None where no vectors were asked for.
        in_snapshot: as in ``MatrixSample``.
    """

    spectrum: Spectrum
    factors: Factors | None
    in_snapshot: bool


class MatrixMeasurer:
    """Decomposes matrices, observation after observation, and tracks them where that is enough.

    Args:
        vectors: pairs of singular vectors to keep.
        half: whether they are kept in half precision.
        tolerance: see ``SubspaceTracker``.
        tracking: whether some observations may want the leading values and vectors only.
    """

    def __init__(self, vectors: int, *, half: bool, tolerance: float, tracking: bool) -> None:
        self.vectors = vectors
        self.stored_dtype = torch.float16 if half else torch.float32
        self.tolerance = tolerance
        self.tracking = tracking
        self._trackers: dict[str, SubspaceTracker] = {}

    def measure(
        self, samples: Sequence[MatrixSample], names: Collection[str], *, full: bool
    ) -> list[MatrixMeasurement]:
        """The spectra of some matrices.

        Args:
            samples: the matrices.
            names: of all that there are; what is no longer among them is forgotten.
            full: whether all singular values are wanted, or the leading ones do.

        Returns:
            One for each.
        """
        self._trackers = {n: tracker for n, tracker in self._trackers.items() if n in names}
        decomposed = self._batched([sample for sample in samples if not self._is_tracked(sample)])
        measurements = []
        for sample in samples:
            solution = decomposed.get(sample.name) or self._factors(sample, full=full)
            measurements.append(self._measurement(sample, solution))
        return measurements

    def _batched(self, samples: Sequence[MatrixSample]) -> dict[str, Factors]:
        """Small matrices of one shape at once, as each alone costs more to ask for than to solve.

        Where one of them needs a slower solver than the others, none is here.
        """
        groups: dict[object, list[MatrixSample]] = {}
        for sample in samples:
            matrix = sample.matrix
            if matrix.ndim == 2 and matrix.numel() <= _SMALL and matrix.is_floating_point():
                key = (matrix.shape, matrix.dtype, matrix.device)
                groups.setdefault(key, []).append(sample)
        decomposed: dict[str, Factors] = {}
        for group in groups.values():
            if len(group) > 1:
                batch = factors_together([sample.matrix for sample in group], self.vectors)
                names = (sample.name for sample in group)
                decomposed |= zip(names, batch, strict=True) if batch else {}
        return decomposed

    def _factors(self, sample: MatrixSample, *, full: bool) -> Factors:
        if not self._is_tracked(sample):
            return factors(sample.matrix, self.vectors)
        fresh = SubspaceTracker(self.vectors, tolerance=self.tolerance)
        tracker = self._trackers.setdefault(sample.name, fresh)
        if not full and (leading := tracker.track(sample.matrix)) is not None:
            return leading
        exact = factors(sample.matrix, self.vectors + EXTRA)
        tracker.restart(exact)
        left, right = exact.left[..., : self.vectors], exact.right[..., : self.vectors]
        return Factors(exact.values, left, right, exact.errors, exact.method)

    def _is_tracked(self, sample: MatrixSample) -> bool:
        """Whether tracking a matrix is wanted, and cheaper than to decompose it."""
        plain = sample.matrix.ndim == 2 and sample.matrix.device.type == "cpu"
        worth = plain and 4 * (self.vectors + EXTRA) <= min(sample.matrix.shape)
        return self.tracking and worth

    def _measurement(self, sample: MatrixSample, solution: Factors) -> MatrixMeasurement:
        assert solution.errors is not None
        spectrum = Spectrum(
            sample.name,
            tuple(sample.matrix.shape),
            solution.values.cpu().float().numpy(),
            self._stored(solution.left).numpy() if self.vectors else None,
            self._stored(solution.right).numpy() if self.vectors else None,
            solution.errors.cpu().numpy(),
            solution.method,
            sample.dtype,
        )
        return MatrixMeasurement(spectrum, solution if self.vectors else None, sample.in_snapshot)

    def _stored(self, vectors: Tensor) -> Tensor:
        return vectors.to("cpu", self.stored_dtype)


def rehearse_measuring() -> None:
    """Loads what the first observation would load, half a second, before a clock runs."""
    with blas_threads(1):
        for size in (2, GRAM_RANK):
            factors(torch.eye(size), 1)
