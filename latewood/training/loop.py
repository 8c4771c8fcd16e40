"""The training loop: one screen, because everything else is an observer or a collaborator."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latewood.core.finalize import finalize
from latewood.core.measure import measure
from latewood.errors import Interrupted, RequestError, WorkError
from latewood.slim.edits import has_recipe
from latewood.slim.saved_files import save_edits
from latewood.tasks.data import Batch, batches
from latewood.tasks.task import Task
from latewood.terminal.progress import progress
from latewood.training import checkpoints, components
from latewood.training.evaluation import evaluate, recalibrate
from latewood.training.guards import first_break
from latewood.training.interrupts import interrupts
from latewood.training.observers import Observer, begin, observers, save_checkpoint
from latewood.training.processes import Processes, processes
from latewood.training.randomness import caller_unchanged, derive, seed_everything, seed_torch
from latewood.training.recipe import Recipe, environment, load_recipe
from latewood.training.run_folder import RunFolder
from latewood.training.session import Session, open_session

__all__ = ["RunResult", "train", "train_steps"]

ASK_EVERY = 10
"""Steps between two times that several processes agree on whether to stop."""


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
    show_progress: bool | None = None,
) -> RunResult:
    """Trains what a recipe describes and leaves a run folder.

    The caller's random generators, default dtype, thread count and signal handlers are left as
    they were. Started by ``torchrun`` or ``accelerate launch`` it joins the other processes.

    Args:
        recipe: a recipe or the path of one; None with ``resume`` takes the folder's own.
        folder: the run folder.
        resume: go on with the run in the folder from its last checkpoint.
        overwrite: replace a run that is in the folder.
        show_progress: None shows progress when it takes longer than two seconds; False never.

    Returns:
        the run's folder, summary and model.

    Raises:
        RequestError: the recipe or the folder is not usable; nothing was started.
        WorkError: the training failed, for example with a loss that is not finite.
        Interrupted: the user stopped it; the folder can be resumed.
    """
    run = RunFolder(folder)
    if resume and overwrite:
        raise RequestError("resume, overwrite: got both; expected at most one of them")
    recipe = _agreed(recipe, run, resume=resume)
    with (
        caller_unchanged(cuda=recipe.device not in ("cpu", "mps")),
        torch.enable_grad(),
        components.importable(*recipe.folders),
        processes(
            device=recipe.device,
            precision=recipe.precision,
            trackers=recipe.trackers,
            folder=run.trackers_folder,
        ) as group,
    ):
        if resume and run.finished:
            return RunResult(run, run.summary, None)
        if not resume:
            group.on_main(lambda: run.require_free(overwrite=overwrite))
        session = open_session(recipe, run, group, _task(recipe, group))
        try:
            # Noted from the first file on, so that no signal leaves a run without a checkpoint.
            with interrupts() as stop:
                _start(session, resume=resume, overwrite=overwrite)
                with progress(
                    run.name,
                    session.total_steps,
                    done=session.step,
                    show=_shown(show_progress, group),
                ) as tick:
                    train_steps(session, observers(tick), lambda: stop.requested)
            return _finish(session)
        except KeyboardInterrupt:
            on = f"go on with --resume {run.path}" if run.exists else "nothing had been written yet"
            raise Interrupted(f"stopped; {on}") from None
        finally:
            if recipe.trackers:
                for tracker in group.accelerator.trackers:
                    tracker.finish()


def train_steps(session: Session, after_step: list[Observer], stopping: Callable[[], bool]) -> None:
    optimizer, processes = session.optimizer, session.processes
    for raw, weight in _remaining_batches(session):
        session.begin_epoch()
        session.begin_step()
        batch = session.prepared(raw)
        loss, penalty = session.loss(session.network, batch, weight)
        optimizer.zero_grad()
        (loss if processes.scaler is None else processes.scaler.scale(loss)).backward()
        norm = _clipped_norm(session).item()
        value = loss.item()
        if _is_broken(processes, value, norm):
            _fail(session, batch, weight, value)
        if processes.scaler is None:
            optimizer.step()
        else:
            processes.scaler.step(optimizer)
            processes.scaler.update()
        for method in session.methods.values():
            method.step()
        session.step += 1
        regular = 0.0 if penalty is None else penalty.item()
        session.meter.add(value - regular, regular, norm)
        for observe in after_step:
            observe(session)
        if _agree_to_stop(session, stopping):
            save_checkpoint(session)
            raise Interrupted(
                f"stopped after step {session.step} of {session.total_steps}; "
                f"go on with --resume {session.folder.path}"
            )


def _remaining_batches(session: Session) -> Iterator[tuple[Batch, float]]:
    recipe, processes = session.recipe, session.processes
    seed = recipe.seed if recipe.order_seed is None else recipe.order_seed
    while not session.finished:
        epoch, start = divmod(session.step, session.steps_per_epoch)
        rest_of_epoch = batches(
            session.task.train,
            batch_size=recipe.batch_size,
            seed=seed,
            epoch=epoch,
            rank=processes.rank,
            world_size=processes.count,
            drop_last=recipe.drop_last,
            start=start,
        )
        yield from islice(rest_of_epoch, session.total_steps - session.step)


def _clipped_norm(session: Session) -> Tensor:
    """The norm of the gradient, clipped if the recipe says so.

    Only the model's own parameters count: masks and other parameters of methods have gradients of
    another scale, which must not shrink the weights' steps, nor be shrunk by theirs.
    """
    if session.processes.scaler is not None:
        session.processes.scaler.unscale_(session.optimizer)
    if session.recipe.clip_norm is not None:
        return nn.utils.clip_grad_norm_(session.clipped, session.recipe.clip_norm)
    return nn.utils.get_total_norm([p.grad for p in session.trained if p.grad is not None])


def _is_broken(processes: Processes, loss: float, norm: float) -> bool:
    """Whether the loss or the gradient is not finite, which must not reach the weights.

    Several processes share one gradient, so its norm fails in all of them at the same step. With
    fp16 an infinite gradient is the scaler's business.
    """
    if processes.scaler is not None:
        return processes.any(not math.isfinite(loss))
    return not math.isfinite(norm) or (processes.count == 1 and not math.isfinite(loss))


def _fail(session: Session, batch: Batch, weight: float, loss: float) -> None:
    def again() -> Tensor:
        session.begin_step()
        return session.loss(session.model, batch, weight)[0]

    found = first_break(session.model, again, batch)
    # Several processes stop together; what to say is what the one that broke has found.
    shown = None if found is None else (loss, found)
    loss, where = session.processes.first(shown) or (loss, None)
    step, folder = session.step, session.folder
    state = session.state() | {"batch": batch, "finding": where}

    def write() -> Path:
        return checkpoints.save(folder.failure_folder, step, session.model.state_dict(), state)

    try:
        saved = f"its state is in {session.processes.on_main(write)}"
    except WorkError as error:
        saved = str(error)
    again_finite = "a second run of the step was finite"
    first = again_finite if where is None else f"{where} is the first that is not finite"
    kept = checkpoints.steps(folder.checkpoints)
    last = f"the last checkpoint is of step {kept[-1]}" if kept else "there is no checkpoint yet"
    raise WorkError(
        f"step {step + 1}: the loss is {loss}; {first}. The step was not taken: "
        f"{saved}; {last}. A smaller learning rate or clip_norm may help"
    )


def _agree_to_stop(session: Session, stopping: Callable[[], bool]) -> bool:
    if session.finished:
        return False
    if session.processes.count == 1:
        return stopping()
    return session.step % ASK_EVERY == 0 and session.processes.any(stopping())


def _agreed(recipe: Recipe | str | Path | None, run: RunFolder, *, resume: bool) -> Recipe:
    """The recipe to run, which for a resumed run must be the one it was started with."""
    if isinstance(recipe, str | Path):
        recipe = load_recipe(recipe)
    if not resume:
        if recipe is None:
            raise RequestError("recipe: got None; expected a recipe, unless a run is resumed")
        return recipe
    if not run.exists:
        raise RequestError(f"resume: got '{run.path}'; expected the folder of a run")
    stored = load_recipe(run.recipe_path)
    kept = stored.model_dump()
    given = kept if recipe is None else recipe.model_dump()
    if given != kept:
        listed = "\n  ".join(
            f"{key}: the run has {kept[key]!r}, the recipe {given[key]!r}"
            for key in kept
            if kept[key] != given[key]
        )
        raise RequestError(
            f"recipe: differs from that of the run in '{run.path}', which cannot change on the "
            f"way:\n  {listed}"
        )
    return stored


def _task(recipe: Recipe, group: Processes) -> Task:
    """The task, built by the main process first: the others then find its decoded files."""
    built: list[Any] = []

    def build() -> None:
        # A task of the user's own may draw from the global generators, and must draw the same
        # numbers in every process and when the run is resumed.
        seed_everything(derive(recipe.seed, "task"), group.device)
        built.append(components.build("task", recipe.task, "task"))

    group.on_main(build)
    if not built:
        build()
    if not isinstance(built[0], Task):
        kind = type(built[0]).__name__
        raise RequestError(f"task: {recipe.task['name']!r} returned a {kind}; expected a Task")
    task: Task = built[0]
    return task


def _start(session: Session, *, resume: bool, overwrite: bool) -> None:
    """Creates the run folder, or goes back to its last checkpoint."""
    recipe, run, group = session.recipe, session.folder, session.processes
    if resume:
        # Each process reads for itself, but all must choose the same checkpoint.
        step = group.on_main(lambda: _last_step(run))
        if step is not None:
            path = run.checkpoints / f"step-{step:08d}"
            session.restore(checkpoints.Checkpoint(path=path, step=step))
        group.on_main(lambda: _rewind(run, session.step if step is not None else -1))
    else:
        about = environment(
            recipe,
            device=str(group.device),
            processes=group.count,
            threads=torch.get_num_threads(),
        )
        text = recipe.to_toml(**about)
        group.on_main(lambda: run.create(text, overwrite=overwrite))
    if recipe.trackers:
        group.accelerator.init_trackers("latewood", config={"recipe": recipe.to_toml()})
    if session.step == 0 and session.saved_step < 0:
        session.begin_epoch()
        begin(session)


def _last_step(run: RunFolder) -> int | None:
    found = checkpoints.latest(run.checkpoints)
    return None if found is None else found.step


def _rewind(run: RunFolder, step: int) -> None:
    run.remove_leftovers()
    checkpoints.discard_after(run.checkpoints, step)
    run.truncate_metrics(step)


def _finish(session: Session) -> RunResult:
    """Finalizes the methods, scores what is left, and writes the model and the summary."""
    task, group, run = session.task, session.processes, session.folder
    model = session.model
    seed_torch(derive(session.recipe.seed, "finish"), group.device)
    if session.scores is None:  # resumed after the last step
        session.scores = evaluate(session, model)
    readings = {"trained": session.scores}
    if session.methods:
        model = finalize(model, list(session.methods.values()))
        readings["finalized"] = evaluate(session, model)
        if recalibrate(session, model):
            readings["recalibrated"] = evaluate(session, model)
    model.eval()
    summary: dict[str, Any] = {
        "task": task.name,
        "headline": task.headline,
        "higher_is_better": task.higher_is_better,
        "readings": readings,
        "steps": session.step,
        "seconds": round(session.seconds, 3),
    }

    def write() -> dict[str, Any]:
        checkpoints.write_model(run.model_path, model.state_dict())
        if has_recipe(model):
            # Smaller than what the recipe makes: how it came from that, to be done again.
            save_edits(model, run.edits_path)
        size = measure(model, task.example_inputs)
        run.write_summary(summary | {"size": size})
        return size

    return RunResult(run, summary | {"size": group.on_main(write)}, model)


def _shown(show_progress: bool | None, group: Processes) -> bool | None:
    return show_progress if group.is_main else False
