"""From the matrices of one moment to their spectra, on whatever thread or process it runs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latewood.spectra.solvers.gram_spectrum import GRAM_RANK
from latewood.spectra.solvers.leading_vectors import Factors, factors, factors_together
from latewood.spectra.solvers.subspace_tracking import EXTRA, Follower
from latewood.spectra.solvers.symmetric_eigen import blas_threads
from latewood.spectra.tracking.snapshots import Spectrum

__all__ = ["Found", "Measurer", "Taken", "rehearse_measuring"]

# Entries up to which a matrix is decomposed together with others of its shape.
_SMALL = 2**16


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
        solved = self._together([each for each in taken if not (follow and self._worth(each))])
        results = []
        for each in taken:
            found = solved.get(each.name) or self._factors(each, full=full, follow=follow)
            results.append(self._found(each, found))
        return results

    def _together(self, taken: Sequence[Taken]) -> dict[str, Factors]:
        """Small matrices of one shape at once, as each alone costs more to ask for than to solve.

        Where one of them needs a slower solver than the others, none is here.
        """
        groups: dict[object, list[Taken]] = {}
        for each in taken:
            matrix = each.matrix
            if matrix.ndim == 2 and matrix.numel() <= _SMALL and matrix.is_floating_point():
                groups.setdefault((matrix.shape, matrix.dtype, matrix.device), []).append(each)
        solved: dict[str, Factors] = {}
        for group in groups.values():
            if len(group) > 1:
                found = factors_together([each.matrix for each in group], self.vectors)
                names = (each.name for each in group)
                solved |= zip(names, found, strict=True) if found else {}
        return solved

    def _found(self, taken: Taken, found: Factors) -> Found:
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
        if not (follow and self._worth(taken)):
            return factors(taken.matrix, self.vectors)
        new = Follower(self.vectors, tolerance=self.tolerance)
        follower = self._followers.setdefault(taken.name, new)
        if not full and (found := follower.follow(taken.matrix)) is not None:
            return found
        exact = factors(taken.matrix, self.vectors + EXTRA)
        follower.restart(exact)
        left, right = (side[..., : self.vectors] for side in _sides(exact))
        return Factors(exact.values, left, right, exact.errors, exact.method)

    def _worth(self, taken: Taken) -> bool:
        """Whether following a matrix would be cheaper than to decompose it."""
        plain = taken.matrix.ndim == 2 and taken.matrix.device.type == "cpu"
        return plain and 4 * (self.vectors + EXTRA) <= min(taken.matrix.shape)

    def _kept(self, side: Tensor) -> Tensor:
        return side.to("cpu", self.stored)


def rehearse_measuring() -> None:
    """Loads what the first look would load, a tenth of a second, before a clock runs."""
    with blas_threads(1):
        for size in (2, GRAM_RANK):
            factors(torch.eye(size), 1)


def _sides(found: Factors) -> tuple[Tensor, Tensor]:
    return found.left, found.right
