"""Branches of a run: from one of its checkpoints to the end, with the data in another order."""

from __future__ import annotations

import math
import os
import shutil
import tomllib
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from latewood.errors import RequestError, WorkError, invalid
from latewood.spectra import perturb_, snapshot_path, snapshot_paths
from latewood.training import checkpoints
from latewood.training.checkpoints import Checkpoint
from latewood.training.evaluation import recalibrate
from latewood.training.opened_run import open_run
from latewood.training.processes import launched_processes
from latewood.training.recipe import ENVIRONMENT, Recipe, environment, load_recipe
from latewood.training.run import RunResult, train
from latewood.training.run_context import RunContext, joined_processes
from latewood.training.run_folder import RunFolder

__all__ = ["branch_run"]


def branch_run(
    trunk: RunFolder,
    step: int,
    *,
    seeds: Sequence[int],
    folder: str | Path,
    perturb: float = 0.0,
    trust: bool = False,
    show_progress: bool | None = None,
) -> list[RunResult]:
    """Trains a run to its end again from one of its checkpoints, once per order of the data.

    Weights, buffers, optimizer, methods, schedule and all randomness but the order go on as they
    were, so that the branch with the run's own order ends with the run's own bits. Each branch is a
    run folder that begins with the trunk's metrics and spectra; one that was stopped goes on, and
    one that is finished is left as it is.

    Args:
        trunk: a run with a checkpoint of that step; keys ``keep_at`` and ``split_points`` of its
            recipe keep them.
        step: optimizer steps before the split.
        seeds: of the order of the data after it, one branch each.
        folder: gets a run folder ``order-SEED`` for each.
        perturb: length of a random step, relative to the weight, that every matrix but embeddings
            and the head takes at the split, in a direction of each seed's own; norms are kept and
            batch norms measured anew, see ``latewood.spectra.perturb_``.
        trust: import and call modules that the trunk's recipe names.
        show_progress: as for ``train``.

    Returns:
        The branches, in the order of the seeds.

    Raises:
        RequestError: no run, no checkpoint of that step, no seed or one twice, a folder that holds
            something else, or to perturb by a length below 0 or weights under transformations.
        WorkError: the checkpoint is damaged, or a training failed.
        Interrupted: the user stopped it; the same call goes on.

    Source: arXiv 2408.11804, section 5.1.
    """
    if not trunk.exists:
        raise invalid("run", str(trunk.path), "the folder of a run")
    if not seeds or len(set(seeds)) < len(seeds) or not all(0 <= seed < 2**63 for seed in seeds):
        raise invalid("seeds", list(seeds), "at least one seed from 0 to 2**63 - 1, each once")
    if launched_processes() > 1:
        raise RequestError("branch_run: got several processes of a launcher; expected one")
    if not 0 <= perturb < math.inf:
        raise invalid("perturb", perturb, "a finite number of at least 0")
    start = checkpoints.at_step(trunk.checkpoints, step)
    recipe = load_recipe(trunk.recipe_path, trust=trust)
    changes = {"keep_at": [], "split_points": False}
    branches = []
    for seed in seeds:
        branch = RunFolder(Path(folder) / f"order-{seed}")
        wanted = recipe.model_copy(update={**changes, "order_seed": seed})
        _begin(branch, trunk, start, wanted, perturb)
        branches.append(train(wanted, folder=branch.path, resume=True, show_progress=show_progress))
    return branches


def _begin(
    branch: RunFolder, trunk: RunFolder, start: Checkpoint, recipe: Recipe, perturb: float
) -> None:
    """Makes the branch's folder as if it had been trained up to the split, unless it is there."""
    if branch.exists:
        recorded = tomllib.loads(branch.recipe_path.read_text(encoding="utf-8"))[ENVIRONMENT]
        if (recorded.get("split"), recorded.get("perturbed", 0.0)) != (start.step, perturb):
            by = f" perturbed by {perturb:g}" if perturb else ""
            expected = f"a new folder, or one with branches from step {start.step}{by}"
            raise invalid("folder", str(branch.path), expected)
        return
    branch.require_free()
    # Made under another name: a folder without its checkpoint would be resumed from nothing.
    half = RunFolder(branch.path.with_name(f".{branch.name}.{os.getpid()}.tmp"))
    try:
        shutil.rmtree(half.path, ignore_errors=True)
        about: dict[str, str | float] = {"trunk": str(trunk.path.resolve()), "split": start.step}
        if perturb:
            about["perturbed"] = perturb
        half.create(recipe.to_toml(**environment(recipe, **about)))
        if perturb:
            moved = _perturbed(start, recipe, perturb)
            checkpoints.save(half.checkpoints, start.step, moved, start.state())
        else:
            shutil.copytree(start.path, half.checkpoints / start.path.name)
        shutil.copyfile(trunk.metrics_path, half.metrics_path)
        half.truncate_metrics(start.step)
        _copy_spectra(trunk, half, start.step)
        half.path.replace(branch.path)
    except OSError as error:
        raise WorkError(f"{branch.path}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(half.path, ignore_errors=True)


def _perturbed(start: Checkpoint, recipe: Recipe, strength: float) -> dict[str, Tensor]:
    """The model of a checkpoint after a random step, in the direction of the order's seed."""
    opened = open_run(start.path, finalized=False, recipe=recipe)
    model = opened.model
    embeddings = [n for n, module in model.named_modules() if isinstance(module, nn.Embedding)]
    assert recipe.order_seed is not None
    perturb_(
        model,
        strength,
        seed=recipe.order_seed,
        exclude=embeddings,
        example_inputs=opened.task.example_inputs,
    )
    with joined_processes(recipe.model_copy(update={"trackers": []}), Path()) as group:
        context = RunContext(recipe, group, opened.task)
        context.place_model(model)
        recalibrate(context, model)
    return {name: entry.detach().cpu() for name, entry in model.state_dict().items()}


def _copy_spectra(trunk: RunFolder, branch: RunFolder, last: int) -> None:
    if not trunk.spectra_folder.is_dir():
        return
    branch.spectra_folder.mkdir()
    for step, path in snapshot_paths(trunk.spectra_folder).items():
        if step <= last:
            shutil.copyfile(path, snapshot_path(branch.spectra_folder, step))
