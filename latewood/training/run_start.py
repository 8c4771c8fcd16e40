"""How a run begins: the recipe agreed on, and its folder created or taken back to a checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch

from latewood.errors import RequestError
from latewood.training import checkpoints
from latewood.training.observers import begin
from latewood.training.recipe import Recipe, environment, load_recipe, read_recipe
from latewood.training.run_folder import RunFolder
from latewood.training.session import Session
from latewood.training.setting_paths import flat_settings

__all__ = ["agreed_recipe", "start"]


def agreed_recipe(
    recipe: Recipe | str | Path | None, run: RunFolder, *, resume: bool, trust: bool = False
) -> Recipe:
    """The recipe to run, which for a resumed run must be the one it was started with.

    Args:
        recipe: a recipe or the path of one; None takes the folder's own.
        run: the folder.
        resume: whether the run in the folder goes on.
        trust: import and call modules that a run's recipe names.

    Raises:
        RequestError: none was given for a new run, there is no run to resume, or it has another.
    """
    if isinstance(recipe, str | Path):
        recipe = load_recipe(recipe, trust=trust)
    if not resume:
        if recipe is None:
            raise RequestError("recipe: got None; expected a recipe, unless a run is resumed")
        return recipe
    if not run.exists:
        raise RequestError(f"resume: got '{run.path}'; expected the folder of a run")
    if recipe is None:
        return load_recipe(run.recipe_path, trust=trust)
    # Compared before anything that it names is imported: what is given then stands for it.
    recorded, given = read_recipe(run.recipe_path).model_dump(), recipe.model_dump()
    if given != recorded:
        listed = "\n  ".join(
            f"{key}: the run has {recorded[key]!r}, the recipe {given[key]!r}"
            for key in recorded
            if recorded[key] != given[key]
        )
        raise RequestError(
            f"recipe: differs from that of the run in '{run.path}', which cannot change on the "
            f"way:\n  {listed}"
        )
    return recipe


def start(session: Session, *, resume: bool, overwrite: bool) -> None:
    """Creates the run folder, or goes back to its last checkpoint; a new run is looked at once.

    Args:
        session: as the recipe builds it.
        resume: whether to go on from the last checkpoint.
        overwrite: replace an earlier run in the folder.

    Raises:
        RequestError: the folder cannot be used, or the checkpoint does not fit the recipe.
        WorkError: every checkpoint is damaged, or a file cannot be written.
    """
    recipe, run, group = session.recipe, session.folder, session.processes
    if resume:
        # Each process reads for itself, but all must choose the same checkpoint.
        step = group.on_main(lambda: _last_step(run))
        if step is not None:
            path = run.checkpoints / f"step-{step:08d}"
            session.restore(checkpoints.Checkpoint(path=path, step=step))
        group.on_main(lambda: _rewind(session, session.step if step is not None else -1))
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
        group.accelerator.init_trackers("latewood", config=flat_settings(recipe.model_dump()))
    if session.step == 0 and session.saved_step < 0:
        session.begin_epoch()
        begin(session)


def _last_step(run: RunFolder) -> int | None:
    checkpoint = checkpoints.latest(run.checkpoints)
    return None if checkpoint is None else checkpoint.step


def _rewind(session: Session, step: int) -> None:
    run, keep = session.folder, session.recipe.keep_checkpoints
    run.remove_leftovers()
    checkpoints.discard_after(run.checkpoints, step)
    # A process killed between writing the last and removing the oldest has left one too many.
    checkpoints.discard_oldest(run.checkpoints, keep, session.kept_steps)
    run.truncate_metrics(step)
