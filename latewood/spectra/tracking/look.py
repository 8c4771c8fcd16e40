"""From the matrices of one moment to their spectra, on whatever thread or process it runs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latewood.spectra.solvers.factors import Factors, factors
from latewood.spectra.solvers.gram import GRAM_RANK
from latewood.spectra.solvers.lapack import blas_threads
from latewood.spectra.solvers.warm import EXTRA, Follower
from latewood.spectra.tracking.snapshots import Spectrum

__all__ = ["Found", "Measurer", "Taken", "rehearse_measuring"]


@dataclass(frozen=True)
class Taken:
    """One matrix as it was at a step.

    Args:
        name: what it is called.
        matrix: (out, in), or (batch, out, in).
        dtype: of the weight as it is stored, "bfloat16" say.
        kept: whether its spectrum goes into the snapshot; others only serve alignments.
    """

    name: str
    matrix: Tensor
    dtype: str
    kept: bool = True


@dataclass(frozen=True)
class Found:
    """What came of one matrix.

    Args:
        spectrum: its singular values, and the vectors to keep.
        factors: the same in full precision; None where no vectors were asked for.
        kept: as in ``Taken``.
    """

    spectrum: Spectrum
    factors: Factors | None
    kept: bool


class Measurer:
    """Decomposes matrices look after look, and follows them where that is enough.

    Args:
        vectors: pairs of singular vectors to keep.
        half: whether they are kept in half precision.
        tolerance: see ``Follower``.
    """

    def __init__(self, vectors: int, *, half: bool, tolerance: float) -> None:
        self.vectors = vectors
        self.stored = torch.float16 if half else torch.float32
        self.tolerance = tolerance
        self._followers: dict[str, Follower] = {}

    def measure(
        self, taken: Sequence[Taken], names: Collection[str], *, full: bool, follow: bool
    ) -> list[Found]:
        """The spectra of some matrices.

        Args:
            taken: the matrices.
            names: of all that there are; what is no longer among them is forgotten.
            full: whether all singular values are wanted, or the leading ones do.
            follow: whether later looks may want the leading ones only.

        Returns:
            One for each.
        """
        self._followers = {n: f for n, f in self._followers.items() if n in names}
        return [self._one(each, full=full, follow=follow) for each in taken]

    def _one(self, taken: Taken, *, full: bool, follow: bool) -> Found:
        found = self._factors(taken, full=full, follow=follow)
        left, right = (self._kept(side) if self.vectors else None for side in _sides(found))
        assert found.errors is not None
        spectrum = Spectrum(
            taken.name,
            tuple(taken.matrix.shape),
            found.values.cpu().float().numpy(),
            None if left is None else left.numpy(),
            None if right is None else right.numpy(),
            found.errors.cpu().numpy(),
            found.method,
            taken.dtype,
        )
        return Found(spectrum, found if self.vectors else None, taken.kept)

    def _factors(self, taken: Taken, *, full: bool, follow: bool) -> Factors:
        plain = taken.matrix.ndim == 2 and taken.matrix.device.type == "cpu"
        worth = plain and follow and 4 * (self.vectors + EXTRA) <= min(taken.matrix.shape)
        if not worth:
            return factors(taken.matrix, self.vectors)
        new = Follower(self.vectors, tolerance=self.tolerance)
        follower = self._followers.setdefault(taken.name, new)
        if not full and (found := follower.follow(taken.matrix)) is not None:
            return found
        exact = factors(taken.matrix, self.vectors + EXTRA)
        follower.restart(exact)
        left, right = (side[..., : self.vectors] for side in _sides(exact))
        return Factors(exact.values, left, right, exact.errors, exact.method)

    def _kept(self, side: Tensor) -> Tensor:
        return side.to("cpu", self.stored)


def rehearse_measuring() -> None:
    """Loads what the first look would load, a tenth of a second, before a clock runs."""
    with blas_threads(1):
        for size in (2, GRAM_RANK):
            factors(torch.eye(size), 1)


def _sides(found: Factors) -> tuple[Tensor, Tensor]:
    return found.left, found.right
