"""What a run computes with besides its model: the recipe, the processes and the task."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from latewood.errors import RequestError
from latewood.tasks import Batch, Task
from latewood.training import components
from latewood.training.processes import Processes, processes
from latewood.training.randomness import caller_unchanged, derive, seed_everything
from latewood.training.recipe import Recipe

__all__ = ["RunContext", "build_task", "joined_processes"]


@dataclass
class RunContext:
    """What models of a run are evaluated with.

    Args:
        recipe: what to do.
        processes: who does it.
        task: the data and the objective.
    """

    recipe: Recipe
    processes: Processes
    task: Task

    def placed(self, batch: Batch) -> Batch:
        """The batch on the device, in the memory format asked for."""
        device = self.processes.device
        if device.type != "cpu":
            batch = tuple(tensor.to(device, non_blocking=True) for tensor in batch)
        if self.recipe.channels_last:
            batch = tuple(
                tensor.to(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor
                for tensor in batch
            )
        return batch

    def place_model(self, model: nn.Module) -> None:
        """Moves a model to the device, into the memory format asked for."""
        model.to(self.processes.device)
        if self.recipe.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


@contextmanager
def joined_processes(recipe: Recipe, folder: Path) -> Iterator[Processes]:
    """Joins the processes of a recipe's run, in which its own modules can be imported.

    The caller's random generators, default dtype and thread count are left as they were.

    Args:
        recipe: names device, precision and trackers.
        folder: where trackers that write files put them.

    Raises:
        RequestError: a device, precision or tracker that this machine does not have.
    """
    with (
        caller_unchanged(cuda=recipe.device not in ("cpu", "mps")),
        torch.enable_grad(),
        components.importable(*recipe.import_folders),
        processes(
            device=recipe.device,
            precision=recipe.precision,
            trackers=recipe.trackers,
            folder=folder,
        ) as group,
    ):
        yield group


def build_task(recipe: Recipe, group: Processes, seed: int | None = None) -> Task:
    """The task, built by the main process first: the others then find its decoded files.

    Args:
        recipe: names the task.
        group: the processes.
        seed: of what a task draws from the global generators; the recipe's if None.

    Raises:
        RequestError: the task cannot be built here, or what is named returns something else.
    """
    built: list[Any] = []

    def build() -> None:
        # A task of the user's own may draw from the global generators, and must draw the same
        # numbers in every process and when the run is resumed.
        seed_everything(derive(recipe.seed if seed is None else seed, "task"), group.device)
        built.append(components.build("task", recipe.task, "task"))

    group.on_main(build)
    if not built:
        build()
    task = built[0]
    if not isinstance(task, Task):
        kind = type(task).__name__
        raise RequestError(f"task: {recipe.task['name']!r} returned a {kind}; expected a Task")
    return task
