"""A network evaluated on many devices with stuck cells."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Final

import joblib
import torch
from torch import nn
from torch.nn.utils import parametrize

from latewood.core import recalibrate_batch_norm
from latewood.core.modes import buffers_restored, undisturbed
from latewood.core.statistics import half_width as half_width_of
from latewood.errors import WorkError, invalid, is_number, require_count
from latewood.faults.crossbar import Crossbar
from latewood.faults.evaluation_data import accuracy, batches_of, digest_of
from latewood.faults.faultable_weights import require_module
from latewood.faults.injection import Injection
from latewood.faults.map_records import MapRecords, MapScore
from latewood.faults.map_statistics import MonteCarlo
from latewood.faults.simulation import require_map
from latewood.faults.stuck_at import StuckAt, require_types, warn_of_misalignment
from latewood.terminal.progress import progress

__all__ = ["LEAST_MAPS", "monte_carlo"]

LEAST_MAPS: Final = 30
"""Maps before an interval is believed that is to end an evaluation."""

Score = Callable[[nn.Module, Any], float]


def monte_carlo(
    model: nn.Module,
    data: Any,
    crossbar: Crossbar,
    faults: StuckAt,
    *,
    maps: int = 200,
    score: Score | None = None,
    seed: int = 0,
    half_width: float | None = None,
    confidence: float = 0.95,
    higher_is_better: bool = True,
    calibration: Iterable[Any] | None = None,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    batch_size: int = 500,
    jobs: int = 1,
    record: str | Path | None = None,
    show: bool | None = None,
) -> MonteCarlo:
    """Scores a network on many devices, map by map; the model is the same to the bit afterwards.

    Map t has the same faults whatever else is evaluated, and with a fixed share of both kinds its
    faults at a rate are among those at a larger one, so that rates are compared on like devices.
    The result does not depend on ``jobs``.

    Args:
        model: any module, evaluated in evaluation mode.
        data: a pair of tensors (inputs, labels), or an iterable of batches, read once.
        crossbar: how the weights are held.
        faults: of the cells.
        maps: how many devices, at most.
        score: ``score(model, batches) -> number``, finite; accuracy in [0, 1] if None.
        seed: of the maps, 0 or more.
        half_width: stop once the confidence interval of the mean is as narrow as plus or minus
            this, after 30 maps at least; None evaluates all.
        confidence: of intervals, in (0, 1).
        higher_is_better: of the score; yields and worst devices follow from it.
        calibration: batches with which batch norms are measured anew on every device: a
            defence that needs a pass of calibration for each chip. None leaves them.
        include: patterns on layer or parameter names (``core.select_parameters``).
        exclude: patterns of the same form.
        batch_size: samples of a batch, where tensors are given.
        jobs: processes, through joblib: ``joblib.parallel_config`` chooses its backend, a cluster
            too. More than one needs a model without transformations.
        record: file that every score is written to; an evaluation that was stopped goes on from
            there.
        show: whether progress is shown; None shows it after two seconds.

    Returns:
        Scores with their statistics.

    Raises:
        RequestError: arguments out of range, data without samples, a model without weights for
            crossbars, or the record of another evaluation.
        WorkError: a score that is not finite, or a damaged record.
    """
    require_module(model)
    require_types(crossbar, faults)
    require_count("maps", maps)
    require_count("jobs", jobs)
    require_map(0, seed)
    if score is not None and not callable(score):
        raise invalid("score", score, "a function of model and batches, or None for accuracy")
    if half_width is not None and not (is_number(half_width) and 0.0 < half_width < math.inf):
        raise invalid("half_width", half_width, "a positive number, in the units of the score")
    if not is_number(confidence) or not 0.0 < confidence < 1.0:
        raise invalid("confidence", confidence, "a number in (0, 1)")
    if jobs > 1 and any(parametrize.is_parametrized(module) for module in model.modules()):
        expected = "1 for a model under masks, formats or faults, which no process can be sent; "
        raise invalid("jobs", jobs, expected + "finalize its methods first")
    batches = batches_of(data, batch_size)
    calibrating = None if calibration is None else list(calibration)
    for batch in calibrating or ():
        if not isinstance(batch, Sequence) or len(batch) == 0:
            expected = "batches that are tuples, the inputs first"
            raise invalid("calibration", f"a batch that is a {type(batch).__name__}", expected)
    warn_of_misalignment(crossbar, faults)
    on_crossbar = partial(
        Injection, crossbar=crossbar, faults=faults, include=include, exclude=exclude
    )
    job = _Job(model, batches, on_crossbar, score or accuracy, seed, calibrating)
    records = MapRecords(
        None if record is None else Path(record),
        {} if record is None else _settings(job, crossbar, faults, include, exclude),
    )
    with undisturbed(model):
        plain = job.scored(model)
    with job.ready() as (device, injection):
        rounded = _evaluated(job, device, injection, None).score
        scores: list[MapScore] = []
        missing = [number for number in range(maps) if number not in records.scores]
        title = f"maps at {faults.rate:.3g}"
        done = maps - len(missing)
        with (
            progress(title, maps, done=done, show=show) as advance,
            closing(_results(job, device, injection, missing, jobs)) as results,
        ):
            for number in range(maps):
                while number not in records.scores:
                    at, result = next(results)
                    records.add(at, result)
                    advance()
                scores.append(records.scores[number])
                if half_width is not None and len(scores) >= LEAST_MAPS:
                    found = half_width_of([s.score for s in scores], confidence=confidence)
                    if found <= half_width:
                        break
    return MonteCarlo(
        tuple(s.score for s in scores),
        tuple(s.changed for s in scores),
        rounded,
        plain,
        seed,
        confidence,
        higher_is_better,
    )


class _Job:
    """What a process needs to score maps."""

    def __init__(
        self,
        model: nn.Module,
        batches: list[Any],
        on_crossbar: Callable[[nn.Module], Injection],
        score: Score,
        seed: int,
        calibration: list[Any] | None,
    ) -> None:
        self.model, self.batches, self._on_crossbar = model, batches, on_crossbar
        self.score, self.seed, self.calibration = score, seed, calibration
        self.process = os.getpid()

    @contextmanager
    def ready(self, *, shared: bool = False) -> Iterator[tuple[nn.Module, Injection]]:
        """The model on crossbars, in evaluation mode; a copy of it where others use it too."""
        model = copy.deepcopy(self.model) if shared else self.model
        with undisturbed(model), self._on_crossbar(model) as injection:
            yield model, injection

    def scored(self, model: nn.Module) -> float:
        """The score of a model."""
        given = self.score(model, self.batches)
        try:
            value = float(given)
        except (TypeError, ValueError, RuntimeError) as error:
            kind = type(given).__name__
            raise WorkError(f"score: got a {kind}; expected a number ({error})") from error
        if not math.isfinite(value):
            raise WorkError(f"score: got {value}; expected a finite number")
        return value


def _evaluated(job: _Job, model: nn.Module, injection: Injection, number: int | None) -> MapScore:
    changed = injection.effective_rate(injection.use_map(number, seed=job.seed))
    if job.calibration is None:
        return MapScore(job.scored(model), changed)
    with buffers_restored(model):
        recalibrate_batch_norm(model, job.calibration)
        return MapScore(job.scored(model), changed)


def _results(
    job: _Job, model: nn.Module, injection: Injection, missing: list[int], jobs: int
) -> Generator[tuple[int, MapScore], None, None]:
    if jobs == 1:
        for number in missing:
            yield number, _evaluated(job, model, injection, number)
        return
    # The model that others are sent is on no crossbar; they put it on theirs.
    injection.remove()
    size = max(1, math.ceil(len(missing) / (4 * jobs)))
    parts = [missing[start : start + size] for start in range(0, len(missing), size)]
    threads = max(1, torch.get_num_threads() // jobs)
    calls = (joblib.delayed(_evaluated_part)(job, part, threads) for part in parts)
    for part in joblib.Parallel(n_jobs=jobs, return_as="generator")(calls):
        yield from part


def _evaluated_part(job: _Job, numbers: list[int], threads: int) -> list[tuple[int, MapScore]]:
    # Backends of threads, and those that run one after the other, have the caller's own model.
    shared = os.getpid() == job.process
    if not shared:
        torch.set_num_threads(threads)
    with job.ready(shared=shared) as (model, injection):
        return [(number, _evaluated(job, model, injection, number)) for number in numbers]


def _settings(
    job: _Job,
    crossbar: Crossbar,
    faults: StuckAt,
    include: Sequence[str],
    exclude: Sequence[str],
) -> dict[str, Any]:
    modules = [(name, type(module).__qualname__) for name, module in job.model.named_modules()]
    return {
        "crossbar": asdict(crossbar),
        "faults": asdict(faults) | {"clusters": repr(faults.clusters)},
        "seed": job.seed,
        "score": _named(job.score),
        "include": list(include),
        "exclude": list(exclude),
        "model": digest_of([modules, job.model.state_dict()]),
        "data": digest_of([job.batches, job.calibration]),
    }


def _named(score: object) -> str:
    """The name of a score, and a fingerprint of what is bound to it."""
    if isinstance(score, partial):
        bound = digest_of([score.args, score.keywords])
        return f"{_named(score.func)} of {bound}"
    return getattr(score, "__qualname__", type(score).__qualname__)
