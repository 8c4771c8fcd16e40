"""What happens around the steps: metrics, validation, probes, checkpoints, progress."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from typing import Any

from latewood.core.protocols import Observation
from latewood.training import checkpoints
from latewood.training.evaluation import evaluate
from latewood.training.session import Session, TrainingMeter

__all__ = ["Observer", "begin", "observers", "save_checkpoint"]

Observer = Callable[[Session], None]
"""Called after every step, in order; it may look at the session and write to its folder."""

CHECKPOINT_SECONDS = 30.0
"""Without ``checkpoint_every``, the ends of epochs closer together than this get no checkpoint."""


def observers() -> list[Observer]:
    """The observers of a run, checkpoints last: one must cover all that its step has written."""
    return [write_training_metrics, validate, run_probes, keep_state, show_progress]


def begin(session: Session) -> None:
    """What is seen before the first step: metrics of methods and probes, and the state if asked."""
    _write_method_metrics(session)
    run_probes(session)
    if 0 in session.kept_steps:
        save_checkpoint(session)


def write_training_metrics(session: Session) -> None:
    """Writes the means since the last row."""
    if not session.due(session.recipe.log_every):
        return
    totals = session.meter.totals(session.processes)
    session.meter = TrainingMeter()
    steps = totals["steps"]
    if not steps:
        return
    row = {
        "loss": totals["loss"] / steps,
        "penalty": totals["penalty"] / steps,
        "gradient_norm": totals["norm"] / steps,
        "lr": float(session.optimizer.param_groups[0]["lr"]),
        "seconds": round(session.seconds, 3),
    }
    session.note = f"loss {row['loss']:.4g}"
    _write(session, "train", row)


def validate(session: Session) -> None:
    """Scores the model on the validation samples, and on the training samples if asked."""
    if not session.due(session.recipe.evaluate_every):
        return
    session.scores = scores = evaluate(session, session.model, advance=session.advance)
    broken = [name for name, value in scores.items() if not math.isfinite(value)]
    if broken and session.processes.is_main:
        # The same words at every step, so that Python shows them once.
        warnings.warn(
            f"{session.folder.name}: not finite in validation: {', '.join(broken)}", stacklevel=2
        )
    headline = session.task.headline
    if headline in scores:
        session.note += f", {headline} {scores[headline]:.4g}"
    _write(session, "validation", scores)
    if session.recipe.score_training:
        dataset = session.task.train
        scores = evaluate(session, session.model, dataset, advance=session.advance)
        _write(session, "training", scores)
    _write_method_metrics(session)


def run_probes(session: Session) -> None:
    """Lets the probes look: in the main process, or in all that share the work."""
    for probe in session.probes:
        if session.processes.is_main or probe.every_process:
            _write_observations(session, probe.observe(session.step))


def _finish_probes(session: Session) -> None:
    """Writes what probes that work beside the training have not said yet."""
    for probe in session.probes:
        if session.processes.is_main or probe.every_process:
            _write_observations(session, probe.finish())


def _write_observations(session: Session, observations: list[Observation]) -> None:
    for observation in observations:
        _write(session, "probe", observation.values, observation.step)


def keep_state(session: Session) -> None:
    """Writes a checkpoint when one is due."""
    every = session.recipe.checkpoint_every
    if session.step in session.kept_steps:
        save_checkpoint(session)
    if not session.due(every):
        return
    if every is None and not session.finished:
        quiet = time.monotonic() - session.saved_at < CHECKPOINT_SECONDS
        if not session.processes.on_main(lambda: not quiet):
            return
    save_checkpoint(session)


def show_progress(session: Session) -> None:
    """Shows that one step more is done."""
    session.advance(1, session.note)


def save_checkpoint(session: Session) -> None:
    """Writes a checkpoint of the state as it is.

    Raises:
        WorkError: it could not be written; the one before it is kept.
    """
    # A run that goes on from here looks at nothing before it again.
    _finish_probes(session)
    if session.saved_step == session.step:
        return
    state = session.state()

    def write() -> None:
        session.folder.sync_metrics()
        checkpoints.save(
            session.folder.checkpoints,
            session.step,
            session.model.state_dict(),
            state,
            keep=session.recipe.keep_checkpoints,
            spare=session.kept_steps,
        )

    session.processes.on_main(write)
    session.saved_step = session.step
    session.saved_at = time.monotonic()


def _write_method_metrics(session: Session) -> None:
    row = {
        f"{prefix}/{name}": float(value)
        for prefix, method in session.methods.items()
        for name, value in method.metrics().items()
    }
    _write(session, "method", row)


def _write(session: Session, kind: str, values: dict[str, float], step: int | None = None) -> None:
    """Writes a row of metrics, of the session's step or of an earlier one."""
    if not session.processes.is_main or not values:
        return
    step = session.step if step is None else step
    epoch = float(session.epochs.passes(step))
    row: dict[str, Any] = {"step": step, "epoch": epoch, "kind": kind, **values}
    session.folder.append_metrics(row)
    if session.recipe.trackers:
        tracked = {f"{kind}/{name}": value for name, value in values.items()}
        if step != session.step:
            # Trackers take rising steps only, so what comes late is logged with its own beside it.
            tracked[f"{kind}/step"] = step
        session.processes.accelerator.log(tracked, step=session.step)
