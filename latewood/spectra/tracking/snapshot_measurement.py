"""From a model at one moment to its snapshot: spectra, alignments, metrics and the file."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from latewood.errors import invalid
from latewood.spectra.measures import RankKind, effective_rank
from latewood.spectra.pair_operands import Operands, operands_alignment
from latewood.spectra.solvers.symmetric_eigen import blas_threads
from latewood.spectra.tracking.matrix_measurement import (
    MatrixMeasurement,
    MatrixMeasurer,
    rehearse_measuring,
)
from latewood.spectra.tracking.matrix_sampling import sample_matrices
from latewood.spectra.tracking.resolved_matrices import ObservedPart
from latewood.spectra.tracking.shards import Shards
from latewood.spectra.tracking.snapshots import rehearse_writing, snapshot_path, write_snapshot
from latewood.spectra.tracking.spectrum import PairAlignment, Spectrum

__all__ = ["SnapshotMeasurement", "SnapshotMeasurer", "SnapshotSettings"]


@dataclass(frozen=True)
class SnapshotSettings:
    """What an observation measures, and what of it is kept.

    Args:
        folder: where one Parquet file per observation goes; None keeps no singular values.
        kind: the definition of the effective rank, see ``effective_rank``.
        vectors: pairs of singular vectors that each file keeps per matrix, from which
            ``agreement_over_time`` works without checkpoints; 0 keeps none. Without a folder they
            are made for alignments and for tracking only.
        half: whether they are kept in half precision.
        tolerance: largest residual of a tracked vector, as a fraction of the largest value.

    Raises:
        RequestError: a value that is not allowed.
    """

    folder: Path | None = None
    kind: RankKind = "exp"
    vectors: int = 16
    half: bool = True
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        if self.folder is not None:
            existing = next((p for p in (self.folder, *self.folder.parents) if p.exists()), None)
            if existing is not None and not existing.is_dir():
                raise invalid("folder", str(self.folder), f"a folder; '{existing}' is a file")
        if self.kind not in ("exp", "entropy"):
            raise invalid("kind", self.kind, '"exp" or "entropy"')
        if self.vectors < 0:
            raise invalid("vectors", self.vectors, "an integer of at least 0")
        if not 0 < self.tolerance < 1:
            raise invalid("tolerance", self.tolerance, "a number between 0 and 1")


@dataclass(frozen=True)
class SnapshotMeasurement:
    """What came of one observation.

    Args:
        step: the number of updates before it.
        matrices: the measured matrices, only this process's until they are gathered.
        operands: of the pairs that it covers, by their names.
        alignments: of these pairs; {} until all matrices are there.
        seconds: processor time that a worker has spent on it.
    """

    step: int
    matrices: list[MatrixMeasurement]
    operands: dict[str, Operands]
    alignments: dict[str, PairAlignment] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def spectra(self) -> list[Spectrum]:
        """Those that go into the snapshot."""
        return [measured.spectrum for measured in self.matrices if measured.in_snapshot]

    def aligned(self) -> SnapshotMeasurement:
        """The same with the alignments, from the factors of all matrices."""
        decomposed = {
            measured.spectrum.name: measured.factors
            for measured in self.matrices
            if measured.factors is not None
        }
        alignments = {}
        for name, operands in self.operands.items():
            alignment = operands_alignment(operands, decomposed)
            diagonal = tuple(alignment.diagonal.tolist())
            alignments[name] = PairAlignment(diagonal, float(alignment.score), alignment.baseline)
        return replace(self, alignments=alignments)

    def metrics(self, kind: RankKind) -> dict[str, float]:
        """The scalars that describe it; see ``SpectralProbe.observe``.

        Args:
            kind: the definition of the effective rank.
        """
        metrics: dict[str, float] = {}
        for spectrum in self.spectra:
            values = torch.from_numpy(spectrum.values)
            if spectrum.complete:
                rank = effective_rank(values, kind=kind).mean()
                metrics[f"effective_rank/{spectrum.name}"] = float(rank)
            else:
                metrics[f"largest_value/{spectrum.name}"] = float(values[..., 0].mean())
            if not spectrum.finite:
                metrics[f"not_finite/{spectrum.name}"] = 1.0
            if spectrum.collapsed:
                metrics[f"collapsed/{spectrum.name}"] = 1.0
        scores = {f"alignment/{name}": pair.score for name, pair in self.alignments.items()}
        return metrics | scores


class SnapshotMeasurer:
    """Measures snapshots, one after the other, in this process or in all together.

    Args:
        settings: what to measure and to keep.
        aligning: whether observations have pairs of layers.
        tracking: whether some observations want the leading values and vectors only.
        shards: the processes that share the matrices.
    """

    def __init__(
        self, settings: SnapshotSettings, *, aligning: bool, tracking: bool, shards: Shards
    ) -> None:
        self.settings = settings
        # Values alone are much cheaper, and metrics are made of them.
        with_vectors = settings.folder is not None or aligning or tracking
        self._matrices = MatrixMeasurer(
            settings.vectors if with_vectors else 0,
            half=settings.half,
            tolerance=settings.tolerance,
            tracking=tracking,
        )
        self._shards = shards
        rehearse_measuring()
        if settings.folder is not None:
            rehearse_writing()

    def prepared(
        self, step: int, part: ObservedPart, *, full: bool, beside: bool, threads: int
    ) -> Callable[[], SnapshotMeasurement]:
        """Takes the weights as they are now, and says what to do with them.

        Args:
            step: the number of updates so far.
            part: what to measure.
            full: whether all singular values are wanted, or the leading ones do.
            beside: whether that is done on another thread, while the weights change.
            threads: of the linear algebra.

        Returns:
            The work, which writes the snapshot unless it is to be gathered first.
        """
        samples, ready = sample_matrices(part.views, self._shards, copy=beside)
        shared = self._shards.active

        def measure() -> SnapshotMeasurement:
            start, processor = time.perf_counter(), time.thread_time()
            with torch.no_grad(), blas_threads(threads):
                ready()
                matrices = self._matrices.measure(samples, part.names, full=full)
                measurement = SnapshotMeasurement(step, matrices, part.operands)
                # Of a shared one no process has all matrices yet.
                if not shared:
                    measurement = measurement.aligned()
            if not shared:
                self._write(measurement)
            if not beside:
                return measurement
            wall = time.perf_counter() - start if threads > 1 else 0.0
            seconds = max(threads * wall, time.thread_time() - processor)
            return replace(measurement, seconds=seconds)

        return measure

    def gathered(self, measure: Callable[[], SnapshotMeasurement]) -> SnapshotMeasurement | None:
        """The measurement of all processes' matrices; None in all but the first, which writes it.

        Args:
            measure: gives that of this process, perhaps from a worker.

        Raises:
            WorkError: another process failed.
        """
        if not self._shards.active:
            return measure()
        measurements: list[SnapshotMeasurement] = []

        def own_matrices() -> list[MatrixMeasurement]:
            measurements.append(measure())
            return measurements[0].matrices

        matrices = self._shards.gathered(own_matrices)
        if not self._shards.first:
            return None
        whole = replace(measurements[0], matrices=matrices).aligned()
        self._write(whole)
        return whole

    def _write(self, measurement: SnapshotMeasurement) -> None:
        if self.settings.folder is not None:
            path = snapshot_path(self.settings.folder, measurement.step)
            write_snapshot(path, measurement.step, measurement.spectra, measurement.alignments)
