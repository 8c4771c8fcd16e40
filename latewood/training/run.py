"""One run from its recipe to its summary."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from latewood.errors import Interrupted, RequestError
from latewood.terminal.progress import progress
from latewood.training.failure_report import named_exhaustion
from latewood.training.interrupts import interrupts
from latewood.training.loop import train_steps
from latewood.training.observers import observers
from latewood.training.processes import Processes
from latewood.training.recipe import Recipe, resumption
from latewood.training.run_context import build_task, joined_processes
from latewood.training.run_finish import finish
from latewood.training.run_folder import RunFolder
from latewood.training.run_start import agreed_recipe, start
from latewood.training.session_builder import open_session

__all__ = ["RunResult", "train"]


@dataclass(frozen=True)
class RunResult:
    """What a run came to.

    Args:
        folder: everything that was written.
        summary: the contents of ``summary.json``.
        model: the trained model, after its methods were finalized; None for a run that had been
            finished before.
    """

    folder: RunFolder
    summary: dict[str, Any]
    model: nn.Module | None


def train(
    recipe: Recipe | str | Path | None,
    *,
    folder: str | Path,
    resume: bool = False,
    overwrite: bool = False,
    trust: bool = False,
    keep_failure: bool = True,
    show_progress: bool | None = None,
) -> RunResult:
    """Trains what a recipe describes and leaves a run folder.

    The caller's random generators, default dtype, thread count and signal handlers are left as
    they were. Started by ``torchrun`` or ``accelerate launch`` it joins the other processes. The
    folder is locked: nobody else can train in it at the same time.

    Args:
        recipe: a recipe or the path of one; None with ``resume`` takes the folder's own.
        folder: the run folder.
        resume: go on with the run in the folder from its last checkpoint.
        overwrite: replace a run that is in the folder.
        trust: import and call modules that a run's recipe names (see ``load_recipe``); a recipe
            that is given, and is no run's, is trusted.
        keep_failure: write the state from before a step whose loss or gradient is not finite.
        show_progress: None shows progress when it takes longer than two seconds; False never.

    Returns:
        the run's folder, summary and model.

    Raises:
        RequestError: the recipe or the folder is not usable, or another process writes to the
            folder; nothing was started.
        Diverged: the loss or the gradient was not finite.
        WorkError: the training failed in another way.
        Interrupted: the user stopped it; the folder can be resumed.
    """
    run = RunFolder(folder)
    if resume and overwrite:
        raise RequestError("resume, overwrite: got both; expected at most one of them")
    recipe = agreed_recipe(recipe, run, resume=resume, trust=trust)
    with joined_processes(recipe, run.trackers_folder) as group, ExitStack() as stack:
        if not resume:
            group.on_main(lambda: run.require_free(overwrite=overwrite))
        if not (resume and run.finished):  # to read what is finished needs no right to write
            stack.callback(run.lock.release)
            group.on_main(run.lock.acquire)
        if resume and run.finished:
            return RunResult(run, run.summary, None)
        session = open_session(recipe, run, group, build_task(recipe, group))
        session.keeps_failures = keep_failure
        try:
            # Noted from the first file on, so that no signal leaves a run without a checkpoint.
            with interrupts() as stop:
                start(session, resume=resume, overwrite=overwrite)
                session.advance = stack.enter_context(
                    progress(
                        run.name,
                        session.total_steps,
                        done=session.step,
                        show=_shown(show_progress, group),
                    )
                )
                with named_exhaustion(session):
                    train_steps(session, observers(), lambda: stop.requested)
            with named_exhaustion(session):
                model, summary = finish(session)
            return RunResult(run, summary, model)
        except KeyboardInterrupt:
            on = f"go on with {resumption(recipe, run.path)}"
            on = on if run.exists else "nothing had been written yet"
            raise Interrupted(f"stopped; {on}") from None
        finally:
            if recipe.trackers:
                for tracker in group.accelerator.trackers:
                    tracker.finish()


def _shown(show_progress: bool | None, group: Processes) -> bool | None:
    return show_progress if group.is_main else False
