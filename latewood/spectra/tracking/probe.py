"""A probe that follows the singular values of a model's weights while it trains."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from latewood.core.protocols import Observation
from latewood.errors import invalid
from latewood.spectra.layer_pairs import Pair
from latewood.spectra.matrices.named_matrices import Conv, Lora, MatrixView, Split, Views
from latewood.spectra.matrices.weights import unwrapped
from latewood.spectra.measures import RankKind, effective_rank
from latewood.spectra.pair_operands import Side, sides_alignment
from latewood.spectra.solvers.symmetric_eigen import blas_threads
from latewood.spectra.tracking.matrix_copies import copied
from latewood.spectra.tracking.observation_schedule import Cadence, Every
from latewood.spectra.tracking.resolved_matrices import Resolved
from latewood.spectra.tracking.shards import Shards
from latewood.spectra.tracking.snapshot_measurement import (
    Found,
    Measurer,
    Taken,
    rehearse_measuring,
)
from latewood.spectra.tracking.snapshots import (
    PairAlignment,
    Spectrum,
    rehearse_writing,
    snapshot_path,
    write_snapshot,
)
from latewood.spectra.tracking.worker import Background, Policy

__all__ = ["SpectralProbe"]

# Steps between two times that processes agree on whether "auto" looks.
_ASK_EVERY = 10


@dataclass(frozen=True)
class _Look:
    step: int
    pairs: dict[str, tuple[Side, Side]]
    found: list[Found]
    alignments: dict[str, PairAlignment]
    seconds: float


class SpectralProbe:
    """Measures the normalised effective rank of every weight matrix, and keeps its singular values.

    Covers every parameter of two or more dimensions except biases and norm gains. A parametrized
    weight is seen as evaluation mode would compute it: masked, quantised. The model may change on
    the way: each look sees the layers and shapes of its moment.

    With a worker, ``observe`` only copies the weights; its thread does the linear algebra, and the
    ``observe`` of a later look, or ``finish``, returns the result, an ``Observation`` of the step
    it belongs to, which also says how many steps later that is ("lag"), and how many looks were
    given up so far ("dropped"). Call ``finish`` at the end, and before a checkpoint from which a
    killed training may resume.

    Args:
        model: the model to look at; it may be parametrized later.
        every: number of steps between two looks; "epoch" for its ends; "auto" for as often as
            ``budget`` allows, which depends on the machine's speed.
        include: globs on layer or parameter names to cover.
        exclude: globs on layer or parameter names to leave out.
        folder: where one Parquet file per look goes; None keeps no singular values.
        kind: the definition of the effective rank, see ``effective_rank``.
        vectors: pairs of singular vectors that each file keeps per matrix, from which
            ``agreement_over_time`` works without checkpoints; 0 keeps none. Without a folder they
            are made for ``pairs`` and ``full_every`` only.
        half: whether they are kept in half precision.
        pairs: consecutive layers whose alignment each look measures; "auto" for
            ``infer_pairs(model)``; None for none.
        split: see ``Views``, as ``conv`` and ``lora``.
        conv: see ``Views``.
        lora: see ``Views``.
        full_every: every how many looks all singular values are computed; those between follow the
            first ``vectors`` from the last look, each certified by its residual or computed anew.
            1 is exact. The first look and that of ``total_steps`` are always full.
        parts: looks that share the matrices: each takes the next part of them, and of the pairs, so
            that no step waits for all. The first look and that of ``total_steps`` take everything.
        tolerance: largest residual of a followed vector, as a share of the largest value.
        worker: whether a thread beside the training does the linear algebra; "auto" does so where
            it is cheaper: with weights on a GPU, or cores that torch's threads leave free.
        queue: looks that may be under way or wait; the one that makes room for another is returned.
        policy: what happens to a look that finds the queue full: "block" waits, "drop-oldest"
            gives up the oldest that has not begun.
        threads: of the linear algebra; None for 1 in a worker, as many as torch has otherwise.
        shard: deal the matrices out to all processes of a distributed training. All must then call
            ``observe`` and ``finish`` at the same steps; the first one has the results.
        steps_per_epoch: length of an epoch, for "epoch".
        total_steps: last step of the training, which "auto" then always observes.
        budget: share of the wall-clock time that "auto" may take, a worker's processor time
            included. The first and the last look are made in any case.

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
        pairs: Sequence[Pair | tuple[str, str]] | Literal["auto"] | None = None,
        split: Split = "fused",
        conv: Conv = "flatten",
        lora: Lora = "factors",
        full_every: int = 1,
        parts: int = 1,
        tolerance: float = 1e-3,
        worker: bool | Literal["auto"] = False,
        queue: int = 1,
        policy: Policy = "block",
        threads: int | None = None,
        shard: bool = False,
        steps_per_epoch: int | None = None,
        total_steps: int | None = None,
        budget: float = 0.03,
    ) -> None:
        if kind not in ("exp", "entropy"):
            raise invalid("kind", kind, '"exp" or "entropy"')
        if vectors < 0 or (vectors == 0 and (pairs is not None or full_every != 1)):
            least = "at least 0" if vectors < 0 else "at least 1 with pairs or full_every"
            raise invalid("vectors", vectors, f"an integer of {least}")
        for name, count in (("full_every", full_every), ("parts", parts)):
            if count < 1:
                raise invalid(name, count, "an integer of at least 1")
        if not 0 < tolerance < 1:
            raise invalid("tolerance", tolerance, "a number between 0 and 1")
        if worker not in (True, False, "auto"):
            raise invalid("worker", worker, 'True, False or "auto"')
        if threads is not None and threads < 1:
            raise invalid("threads", threads, "an integer of at least 1, or None")
        self.model = unwrapped(model)
        self._resolved = Resolved(self.model, Views(include, exclude, split, conv, lora), pairs)
        self.every = every
        self.folder = None if folder is None else Path(folder)
        rehearse_measuring()
        if self.folder is not None:
            rehearse_writing()
        self.kind = kind
        self.full_every = full_every
        self.parts = parts
        self.threads = threads
        self.total_steps = total_steps
        self._shards = Shards(wanted=shard)
        # Whether "auto" asks nobody else.
        self._alone = every == "auto" and not shard
        self._worker = worker
        self._beside: bool | None = None
        self._background: Background[_Look] = Background(queue, policy)
        # Values alone are much cheaper, and metrics are made of them.
        kept = self.folder is not None or pairs is not None or full_every > 1
        self._measurer = Measurer(vectors if kept else 0, half=half, tolerance=tolerance)
        self._looks = 0
        self._cadence = Cadence(
            every,
            steps_per_epoch=steps_per_epoch,
            total_steps=total_steps,
            budget=budget,
            last=parts,
        )

    @property
    def overhead(self) -> float:
        """Share of the wall-clock time since the first call of ``observe`` that it has taken.

        The processor time of a worker counts as well.
        """
        return self._cadence.overhead

    @property
    def dropped(self) -> int:
        """Looks given up because the queue was full."""
        return self._background.dropped

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
            a look follows the first singular values only; "alignment/<pair>" scores;
            "collapsed/<name>" and "not_finite/<name>" of 1 where a matrix is zero or has NaN or
            Inf. With a worker it is that of an earlier look, with "lag" and "dropped".

        Raises:
            WorkError: a snapshot could not be written, perhaps an earlier one by the worker.
        """
        start = time.perf_counter()
        if self._alone and not self._background.pending and self._cadence.quiet(step, start):
            return []
        due = self._due(step)
        earlier = self._earlier(step, due=due)
        if not due:
            self._cadence.spent += time.perf_counter() - start
            return earlier
        _wait_for_devices(self.model)
        with self._cadence.measured():
            work = self._prepared(step)
            if self._in_background():
                self._background.submit(work)
                return earlier
            values = self._reported(work)
            return [Observation(step, values)] if values else []

    def finish(self) -> list[Observation]:
        """Waits for the looks that are under way.

        Returns:
            What ``observe`` would have returned for each, oldest first.

        Raises:
            WorkError: a snapshot could not be written.
        """
        observations: list[Observation] = []
        while self._background.pending:
            observations += self._taken(None, wait=True)
        return observations

    def _earlier(self, now: int, *, due: bool) -> list[Observation]:
        """The result of an earlier look, if its time has come."""
        pending, length = self._background.pending, self._background.length
        if self._shards.active:
            # All processes meet here, at looks only.
            return self._taken(now, wait=True) if due else []
        if self.every == "auto" or self._background.policy == "drop-oldest":
            return self._taken(now)
        # At a step that does not depend on the machine's speed, so that logs are reproducible.
        return self._taken(now, wait=True) if due and pending >= length else []

    def _due(self, step: int) -> bool:
        busy = self._background.pending > 0
        if self.every != "auto" or not self._shards.active:
            return self._cadence.due(step, busy=busy)
        if step % _ASK_EVERY and step != self.total_steps and self._looks:
            return False
        return self._shards.agreed(self._cadence.due(step))

    def _in_background(self) -> bool:
        if self._beside is None:
            self._beside = self._shards.agreed(self._is_cheaper_beside())
        return self._beside

    def _is_cheaper_beside(self) -> bool:
        if self._worker != "auto":
            return self._worker
        if any(p.device.type != "cpu" for p in self.model.parameters()):
            return True
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        # The processes of one machine share its cores.
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1") or "1")
        return cores > processes * torch.get_num_threads()

    def _prepared(self, step: int) -> Callable[[], _Look]:
        """Takes the weights, copied where the work is done elsewhere, and says what to do."""
        whole = self._looks == 0 or step == self.total_steps
        share = self._resolved.share(None if whole else self._looks, self.parts)
        background = self._in_background()
        taken: list[tuple[MatrixView, bool]] = []
        matrices = []
        for place, (view, kept) in enumerate(share.views.values()):
            # Read by all, since a sharded weight is gathered from all; one matrix at a time.
            matrix = view.read()
            if self._shards.mine(place):
                taken.append((view, kept))
                matrices.append(matrix)
        copies, ready = copied(matrices) if background else (matrices, lambda: None)
        own = [
            Taken(view.name, matrix, str(view.dtype).removeprefix("torch."), kept)
            for (view, kept), matrix in zip(taken, copies, strict=True)
        ]
        full = whole or self._looks // self.parts % self.full_every == 0
        self._looks += 1
        threads = self.threads or (1 if background else torch.get_num_threads())
        shared = self._shards.active

        def work() -> _Look:
            start, processor = time.perf_counter(), time.thread_time()
            with torch.no_grad(), blas_threads(threads):
                ready()
                follow = self.full_every > 1
                found = self._measurer.measure(own, share.names, full=full, follow=follow)
                # Of a shared look no process has all matrices yet.
                lines = {} if shared else _alignments(found, share.pairs)
                look = _Look(step, share.pairs, found, lines, 0.0)
            if not shared:
                self._write(look)
            spent = time.perf_counter() - start if threads > 1 else 0.0
            seconds = max(threads * spent, time.thread_time() - processor) if background else 0.0
            return replace(look, seconds=seconds)

        return work

    def _taken(self, now: int | None, *, wait: bool = False) -> list[Observation]:
        """The oldest result of the worker, if there is one."""
        if not self._background.ready(wait=wait):
            return []
        step = -1

        def result() -> _Look:
            nonlocal step
            look = self._background.take()
            step = look.step
            self._cadence.charge(look.seconds)
            return look

        metrics = self._reported(result)
        if not metrics:
            return []
        lag = {} if now is None else {"lag": float(now - step)}
        return [Observation(step, {**metrics, **lag, "dropped": float(self.dropped)})]

    def _reported(self, work: Callable[[], _Look]) -> dict[str, float]:
        """The metrics of a look; of a shared one in the first process, which also keeps it."""
        if self._shards.active:
            looks: list[_Look] = []

            def part() -> list[Found]:
                looks.append(work())
                return looks[0].found

            found = self._shards.gathered(part)
            if not self._shards.first:
                return {}
            look = replace(looks[0], found=found, alignments=_alignments(found, looks[0].pairs))
            self._write(look)
        else:
            look = work()
        metrics: dict[str, float] = {}
        for each in look.found:
            if each.kept:
                metrics |= self._metrics(each.spectrum)
        return metrics | {f"alignment/{n}": a.score for n, a in look.alignments.items()}

    def _write(self, look: _Look) -> None:
        if self.folder is not None:
            spectra = [each.spectrum for each in look.found if each.kept]
            path = snapshot_path(self.folder, look.step)
            write_snapshot(path, look.step, spectra, look.alignments)

    def _metrics(self, spectrum: Spectrum) -> dict[str, float]:
        values = torch.from_numpy(spectrum.values)
        if spectrum.complete:
            rank = effective_rank(values, kind=self.kind).mean()
            metrics = {f"effective_rank/{spectrum.name}": float(rank)}
        else:
            metrics = {f"largest_value/{spectrum.name}": float(values[..., 0].mean())}
        if not spectrum.finite:
            metrics[f"not_finite/{spectrum.name}"] = 1.0
        if spectrum.collapsed:
            metrics[f"collapsed/{spectrum.name}"] = 1.0
        return metrics


def _alignments(
    looked: Sequence[Found], pairs: Mapping[str, tuple[Side, Side]]
) -> dict[str, PairAlignment]:
    factors = {each.spectrum.name: each.factors for each in looked if each.factors is not None}
    results = {}
    for name, sides in pairs.items():
        found = sides_alignment(sides, factors)
        diagonal = tuple(found.diagonal.tolist())
        results[name] = PairAlignment(diagonal, float(found.score), found.baseline)
    return results


def _wait_for_devices(model: nn.Module) -> None:
    # The time of the training step still under way is not the probe's.
    for device in {p.device for p in model.parameters()}:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
