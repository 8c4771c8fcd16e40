"""A probe that measures the singular values of a model's weights while it trains."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from torch import nn

from latewood.core import Observation, StepsPerEpoch
from latewood.errors import invalid
from latewood.spectra.layer_pairs import LayerPair
from latewood.spectra.matrices.named_matrices import Conv, Lora, Split, Views
from latewood.spectra.matrices.weights import unwrapped
from latewood.spectra.measures import RankKind
from latewood.spectra.tracking.matrix_sampling import wait_for_devices
from latewood.spectra.tracking.observation_schedule import (
    Every,
    ObservationSchedule,
    ObservationSettings,
)
from latewood.spectra.tracking.resolved_matrices import ResolvedMatrices
from latewood.spectra.tracking.shards import Shards
from latewood.spectra.tracking.snapshot_measurement import (
    SnapshotMeasurement,
    SnapshotMeasurer,
    SnapshotSettings,
)
from latewood.spectra.tracking.worker import QueuePolicy, Worker, WorkerSettings

__all__ = ["SpectralProbe"]


class SpectralProbe:
    """Measures the normalised effective rank of every weight matrix, and keeps its singular values.

    Covers every parameter of two or more dimensions except biases and norm gains. A parametrized
    weight is seen as evaluation mode would compute it: masked, quantised. The model may change on
    the way: each observation sees the layers and shapes of its moment.

    With a worker, ``observe`` only copies the weights; its thread does the linear algebra, and a
    later ``observe``, or ``finish``, returns the result, an ``Observation`` of the step it belongs
    to, which also says how many steps later that is ("lag"), and how many observations were given
    up so far ("dropped"). Call ``finish`` at the end, and before a checkpoint from which a killed
    training may resume.

    Args:
        model: the model to observe; it may be parametrized later.
        every: number of steps between observations, "epoch" or "auto"; see ``ObservationSettings``.
        include: globs on layer or parameter names to cover.
        exclude: globs on layer or parameter names to leave out.
        folder: where one Parquet file per observation goes; see ``SnapshotSettings``.
        kind: the definition of the effective rank, see ``effective_rank``.
        vectors: pairs of singular vectors that each file keeps per matrix.
        half: whether they are kept in half precision.
        pairs: consecutive layers whose alignment each observation measures; "auto" for
            ``infer_pairs(model, example_inputs)``; None for none.
        example_inputs: what the model is called with: "auto" then runs it once to see which layer
            reads which, and again where its layers have changed.
        split: parts of fused projections of attention, see ``Views``.
        conv: how kernels are seen, see ``Views``.
        lora: how low-rank adapters are seen, see ``Views``.
        full_every: every how many observations all singular values are computed.
        parts: observations that share the matrices, a part each.
        tolerance: largest residual of a tracked vector, as a fraction of the largest value.
        worker: whether a thread beside the training does the work; see ``WorkerSettings``.
        queue: observations that may be under way or wait for the worker.
        policy: what happens to an observation that finds the queue full.
        threads: of the linear algebra.
        shard: deal the matrices out to all processes of a distributed training. All must then call
            ``observe`` and ``finish`` at the same steps; the first one has the results.
        steps_per_epoch: length of every epoch, or of each, for "epoch".
        total_steps: last step of the training, which "auto" then always observes.
        budget: fraction of the wall-clock time that "auto" may take.

    Raises:
        RequestError: an argument that is not allowed, "epoch" without its length, a glob that
            matches nothing, or pairs that do not fit.

    Source: arXiv 2408.11804, section 3.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        every: Every,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        folder: Path | None = None,
        kind: RankKind = "exp",
        vectors: int = 16,
        half: bool = True,
        pairs: Sequence[LayerPair | tuple[str, str]] | Literal["auto"] | None = None,
        example_inputs: Any = None,
        split: Split = "fused",
        conv: Conv = "flatten",
        lora: Lora = "factors",
        full_every: int = 1,
        parts: int = 1,
        tolerance: float = 1e-3,
        worker: bool | Literal["auto"] = False,
        queue: int = 1,
        policy: QueuePolicy = "block",
        threads: int | None = None,
        shard: bool = False,
        steps_per_epoch: StepsPerEpoch | None = None,
        total_steps: int | None = None,
        budget: float = 0.03,
    ) -> None:
        self.model = unwrapped(model)
        self.views = Views(include, exclude, split, conv, lora)
        self.observation_settings = ObservationSettings(
            every, full_every, parts, steps_per_epoch, total_steps, budget
        )
        folder = None if folder is None else Path(folder)
        self.snapshot_settings = SnapshotSettings(folder, kind, vectors, half, tolerance)
        self.worker_settings = WorkerSettings(worker, queue, policy, threads)
        if vectors == 0 and (pairs is not None or full_every > 1):
            raise invalid("vectors", vectors, "an integer of at least 1 with pairs or full_every")
        self._shards = Shards(wanted=shard)
        self._matrices = ResolvedMatrices(self.model, self.views, pairs, example_inputs)
        self._measurer = SnapshotMeasurer(
            self.snapshot_settings,
            aligning=pairs is not None,
            tracking=full_every > 1,
            shards=self._shards,
        )
        self._schedule = ObservationSchedule(self.observation_settings, self._shards)
        self._worker: Worker[SnapshotMeasurement] = Worker(self.worker_settings)
        self._beside: bool | None = None

    @classmethod
    def from_settings(
        cls,
        model: nn.Module,
        observation_settings: ObservationSettings,
        *,
        views: Views | None = None,
        snapshot_settings: SnapshotSettings | None = None,
        worker_settings: WorkerSettings | None = None,
        pairs: Sequence[LayerPair | tuple[str, str]] | Literal["auto"] | None = None,
        example_inputs: Any = None,
        shard: bool = False,
    ) -> SpectralProbe:
        """A probe from the settings that its many arguments belong to; defaults for the others."""
        options = vars(observation_settings) | vars(views or Views())
        options |= vars(snapshot_settings or SnapshotSettings())
        options |= vars(worker_settings or WorkerSettings())
        return cls(model, pairs=pairs, example_inputs=example_inputs, shard=shard, **options)

    @property
    def overhead(self) -> float:
        """Fraction of the wall-clock time since the first call of ``observe`` that it has taken.

        The processor time of a worker counts as well.
        """
        return self._schedule.overhead

    @property
    def dropped(self) -> int:
        """Observations given up because the queue was full."""
        return self._worker.dropped

    @property
    def every_process(self) -> bool:
        """Whether all processes of a distributed training must call this, not only the first."""
        return self._shards.wanted

    def observe(self, step: int) -> list[Observation]:
        """Looks after ``step`` updates, where that is due.

        Args:
            step: number of updates so far.

        Returns:
            One observation, or none where nothing is due. Its values are {"effective_rank/<name>":
            value} of every matrix, the mean over its groups; {"largest_value/<name>": value} where
            only the first singular values were tracked; "alignment/<pair>" scores;
            "collapsed/<name>" and "not_finite/<name>" of 1 where a matrix is zero or has NaN or
            Inf. With a worker it is an earlier one, with "lag" and "dropped".

        Raises:
            WorkError: a snapshot could not be written, perhaps an earlier one by the worker.
        """
        if self._schedule.passes(step):
            return []
        start = time.perf_counter()
        waiting = self._worker.pending > 0
        if not waiting and self._schedule.quiet(step, start):
            return []
        due = self._schedule.due(step, busy=waiting)
        earlier = self._earlier(step, due=due)
        if not due:
            self._schedule.spent += time.perf_counter() - start
            return earlier
        wait_for_devices(self.model)
        with self._schedule.measured():
            if self._beside is None:
                self._beside = self._shards.agreed(self.worker_settings.beside(self.model))
            extent = self._schedule.next_extent(step)
            measure = self._measurer.prepared(
                step,
                self._matrices.part(extent.turn, self.observation_settings.parts),
                full=extent.full,
                beside=self._beside,
                threads=self.worker_settings.thread_count(beside=self._beside),
            )
            if self._beside:
                self._worker.submit(measure)
                return earlier
            return self._observation(self._measurer.gathered(measure))

    def finish(self) -> list[Observation]:
        """Waits for the observations that are under way.

        Returns:
            What ``observe`` would have returned for each, oldest first.

        Raises:
            WorkError: a snapshot could not be written.
        """
        observations: list[Observation] = []
        while self._worker.pending:
            observations += self._from_worker(None, wait=True)
        return observations

    def __deepcopy__(self, memo: dict[int, Any]) -> SpectralProbe:
        # What is under way would change what is being copied.
        self._worker.settle()
        copied = copy.copy(self)
        memo[id(self)] = copied
        copied.__dict__ = copy.deepcopy(self.__dict__, memo)
        return copied

    def _earlier(self, now: int, *, due: bool) -> list[Observation]:
        """An earlier observation of the worker, if its time has come."""
        if self._shards.active:
            # All processes meet here, at observations only.
            return self._from_worker(now, wait=True) if due else []
        auto = self.observation_settings.every == "auto"
        if auto or self.worker_settings.policy == "drop-oldest":
            return self._from_worker(now, wait=False)
        # At a step that does not depend on the machine's speed, so that logs are reproducible.
        full = due and self._worker.pending >= self._worker.length
        return self._from_worker(now, wait=True) if full else []

    def _from_worker(self, now: int | None, *, wait: bool) -> list[Observation]:
        if not self._worker.ready(wait=wait):
            return []
        measurement = self._measurer.gathered(self._taken)
        lag = {} if measurement is None or now is None else {"lag": float(now - measurement.step)}
        return self._observation(measurement, lag | {"dropped": float(self.dropped)})

    def _taken(self) -> SnapshotMeasurement:
        measurement = self._worker.take()
        self._schedule.charge(measurement.seconds)
        return measurement

    def _observation(
        self, measurement: SnapshotMeasurement | None, notes: dict[str, float] | None = None
    ) -> list[Observation]:
        metrics = {} if measurement is None else measurement.metrics(self.snapshot_settings.kind)
        if measurement is None or not metrics:
            return []
        return [Observation(measurement.step, metrics | (notes or {}))]
