"""A run's model as if the run had ended at a checkpoint: its methods finalized in a copy."""

from __future__ import annotations

import torch
from torch import nn

from latewood.core.finalize import finalize
from latewood.training import components
from latewood.training.checkpoints import Checkpoint
from latewood.training.evaluation import recalibrate
from latewood.training.processes import processes
from latewood.training.randomness import caller_unchanged, derive, seed_everything, seed_torch
from latewood.training.recipe import Recipe
from latewood.training.run_folder import RunFolder
from latewood.training.session import open_session

__all__ = ["finalized"]


def finalized(recipe: Recipe, run: RunFolder, checkpoint: Checkpoint) -> nn.Module:
    """Builds what a recipe describes, goes to a checkpoint, and does what the run's end would do.

    Methods are finalized by ``core.finalize``, and batch-norm statistics are measured anew. On the
    CPU and in one process; the run's folder is not written to.

    Args:
        recipe: of the run.
        run: its folder.
        checkpoint: one of its checkpoints.

    Returns:
        The model in evaluation mode; at the last step of a run on the CPU the one it ended with.

    Raises:
        RequestError: the recipe cannot be built here, or the checkpoint does not fit it.
        WorkError: the checkpoint is damaged.
    """
    here = {"device": "cpu", "precision": "no", "compile": False, "probes": [], "trackers": []}
    recipe = recipe.model_copy(update=here)
    with (
        caller_unchanged(cuda=False),
        torch.enable_grad(),
        components.importable(*recipe.folders),
        processes(device="cpu", precision="no", trackers=[], folder=run.trackers_folder) as group,
    ):
        seed_everything(derive(recipe.seed, "task"), group.device)
        task = components.build("task", recipe.task, "task")
        session = open_session(recipe, run, group, task)
        session.restore(checkpoint)
        seed_torch(derive(recipe.seed, "finish"), group.device)
        model = finalize(session.model, list(session.methods.values()))
        recalibrate(session, model)
        return model.eval()
