"""A run made longer: a new run that begins where another one ended, or where it was stopped."""

from __future__ import annotations

import shutil
import tomllib
import warnings
from collections.abc import Sequence
from pathlib import Path

from latewood.errors import RequestError, WorkError, invalid
from latewood.training import checkpoints
from latewood.training.processes import launched_processes
from latewood.training.recipe import ENVIRONMENT, Recipe, load_recipe, read_recipe
from latewood.training.run import RunResult, train
from latewood.training.run_folder import RunFolder

__all__ = ["copy_for_longer", "train_longer"]


def train_longer(
    source: str | Path,
    overrides: Sequence[str],
    *,
    folder: str | Path,
    trust: bool = False,
    show_progress: bool | None = None,
) -> RunResult:
    """Trains on from the last checkpoint of a run, for more epochs or steps, in a new folder.

    The old run stays as it is; its metrics and what its probes saw begin the new one's. The
    schedules of learning rates and methods are those of the longer run from here on.

    Args:
        source: the folder of the run that is to be longer.
        overrides: "epochs=N" or "steps=N", more than it has.
        folder: the new run's.
        trust: import and call modules that the run's recipe names.
        show_progress: as for ``train``.

    Raises:
        RequestError: no run or no checkpoint, another change than a longer one, a folder that is
            not free.
        WorkError: a file cannot be read or written, or the training failed.
        Interrupted: the user stopped it; the new folder can be resumed.
    """
    if launched_processes() > 1:
        raise RequestError(
            f"resume: a run is made longer by one process, got {launched_processes()}; expected "
            "them to go on with the new folder once it is there"
        )
    run = RunFolder(source)
    recipe = copy_for_longer(run, overrides, RunFolder(folder), trust=trust)
    return train(recipe, folder=folder, resume=True, show_progress=show_progress)


def copy_for_longer(
    run: RunFolder,
    overrides: Sequence[str],
    target: RunFolder,
    *,
    trust: bool = False,
) -> Recipe:
    """Makes a folder that ``train(recipe, folder=..., resume=True)`` goes on in for longer.

    Args:
        run: the run that is to be longer.
        overrides: "epochs=N" or "steps=N", more than it has.
        target: the new folder, written whole or not at all.
        trust: import and call modules that the run's recipe names.

    Returns:
        The recipe of the longer run.

    Raises:
        RequestError: as ``train_longer``.
        WorkError: a file cannot be read or written.
    """
    if not run.exists:
        raise RequestError(f"resume: got '{run.path}'; expected the folder of a run")
    if target.path.resolve() == run.path.resolve():
        raise invalid("folder", str(target.path), "another folder than that of the run itself")
    before, recipe = (
        read_recipe(run.recipe_path),
        load_recipe(run.recipe_path, overrides, trust=trust),
    )
    _require_longer(before, recipe, overrides)
    checkpoint = checkpoints.latest(run.checkpoints)
    if checkpoint is None:
        raise RequestError(f"resume: got '{run.path}'; expected a run with a checkpoint")
    target.require_free()
    if recipe.schedule["name"] != "constant" or recipe.methods:
        warnings.warn(
            f"schedules are stretched from {_length(before)} to {_length(recipe)}: from step "
            f"{checkpoint.step} on, learning rates and methods are where those of a run of that "
            "length would be",
            stacklevel=3,
        )
    environment = tomllib.loads(run.recipe_path.read_text(encoding="utf-8")).get(ENVIRONMENT, {})
    temporary = target.path.with_name(f".{target.path.name}.longer")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        copied = RunFolder(temporary)
        copied.create(recipe.to_toml(**environment))
        shutil.copytree(checkpoint.path, copied.checkpoints / checkpoint.path.name)
        shutil.copy2(run.metrics_path, copied.metrics_path)
        if run.spectra_folder.is_dir():
            shutil.copytree(run.spectra_folder, copied.spectra_folder)
        temporary.replace(target.path)
    except (OSError, shutil.Error) as error:
        raise WorkError(f"{target.path}: the run cannot be copied there ({error})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return recipe


def _require_longer(before: Recipe, recipe: Recipe, overrides: Sequence[str]) -> None:
    length = {"epochs", "steps"}
    changed = {
        key for key in type(recipe).model_fields if getattr(before, key) != getattr(recipe, key)
    }
    given = ", ".join(overrides) or "nothing"
    if changed - length:
        raise invalid("--set", given, "only epochs=N or steps=N for a run that is made longer")
    for key in length:
        old, new = getattr(before, key), getattr(recipe, key)
        if old is not None and (new is None or new <= old):
            raise invalid("--set", given, f"{key} above {old}, which the run has")


def _length(recipe: Recipe) -> str:
    return f"{recipe.steps} steps" if recipe.epochs is None else f"{recipe.epochs} epochs"
