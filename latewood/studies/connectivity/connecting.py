"""Two trained networks of one shape, and what lies on the straight line between them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from latewood.core import read_tensors
from latewood.errors import RequestError, invalid
from latewood.spectra import Connection, agreement, connect, endpoint_factors, matched
from latewood.studies.connectivity.connected_networks import AS_THEY_ARE, PERMUTED, Connected
from latewood.tasks import Dataset, Task, TensorDataset
from latewood.terminal.progress import progress
from latewood.training.checkpoints import shapes
from latewood.training.evaluation import Recalibration, evaluate
from latewood.training.opened_run import model_of_state, open_run, run_of
from latewood.training.recipe import Recipe, load_recipe
from latewood.training.run_context import RunContext, build_task, joined_processes
from latewood.training.run_folder import RunFolder

__all__ = ["connect_files"]

_MOST_DIFFERENCES: Final = 8
"""Entries of two networks that an error lists."""


def connect_files(
    first: str | Path,
    second: str | Path,
    *,
    recipe: Recipe | None = None,
    points: int = 11,
    permute: bool = False,
    truncate: float | None = None,
    samples: int | None = None,
    trust: bool = False,
    show_progress: bool | None = None,
) -> Connected:
    """Scores networks on the line between two trained ones, on training and validation samples.

    Every entry of the states is interpolated, buffers included, and batch norms are measured anew
    at every position, from the first training batches without augmentation, as many as the recipe
    says in ``recalibration_batches``.

    Args:
        first: a run folder (its final model, or its last checkpoint if it has not finished), a
            checkpoint folder of a run, or a file with a state dict.
        second: likewise.
        recipe: of the data, and of the model of a file that is in no run; that of the first end's
            run, or else of the second's, if left out.
        points: equally spaced positions, the ends included.
        permute: walk a second time with the second network's channels in the order that is closest
            to the first's.
        truncate: walk again with every network truncated to the top part of its spectra, this
            share of the singular values of each matrix but the head's.
        samples: score only the first so many training samples, and as many validation samples.
        trust: import and call modules that the runs' recipes name.
        show_progress: None shows it when the work takes longer than two seconds; False never.

    Returns:
        Scores named "train loss", "validation error" and so on; lower is better in all.

    Raises:
        RequestError: nothing to read, no recipe, networks of two shapes (with the entries that
            differ), a share outside [0, 1], or ``permute`` or ``truncate`` for a model under
            transformations.
        WorkError: a file is damaged.
    """
    if points < 2:
        raise invalid("points", points, "an integer of at least 2")
    if samples is not None and samples < 1:
        raise invalid("samples", samples, "an integer of at least 1")
    if truncate is not None and not 0 <= truncate <= 1:
        raise invalid("truncate", truncate, "a number from 0 to 1")
    paths = Path(first), Path(second)
    recipe = recipe or _recipe(paths, trust)
    with joined_processes(recipe.model_copy(update={"trackers": []}), Path()) as group:
        if group.count > 1:
            raise RequestError("processes: got several of a launcher; expected one")
        context = RunContext(recipe, group, build_task(recipe, group))
        model, one, other = _ends(context, paths, trust)
        second_ends = {AS_THEY_ARE: other}
        if permute:
            example = [tensor.to(group.device) for tensor in context.task.example_inputs]
            second_ends[PERMUTED], _ = matched(model, one, other, example)
        scores, seen = _Scores(context, samples), Recalibration(context)
        walks = len(second_ends) * (1 if truncate is None else 2)
        with progress("positions", points * walks, show=show_progress) as advance:

            def scored(network: nn.Module) -> dict[str, float]:
                values = scores(network)
                advance()
                return values

            def walked(fraction: float | None) -> dict[str, Connection]:
                return {
                    order: connect(
                        model,
                        one,
                        end,
                        scored,
                        points=points,
                        batches=seen,
                        forward=seen.forward,
                        truncate=fraction,
                    )
                    for order, end in second_ends.items()
                }

            lines = walked(None)
            truncated = {} if truncate is None else walked(truncate)
        first_factors, agreements = endpoint_factors(model, one), {}
        for order, end in second_ends.items():
            factors = endpoint_factors(model, end)
            agreements[order] = {
                name: agreement(values, factors[name]) for name, values in first_factors.items()
            }
        return Connected(
            str(first), str(second), context.task.name, lines, agreements, truncate, truncated
        )


def _recipe(paths: Iterable[Path], trust: bool) -> Recipe:
    """The recipe of the first of these that belongs to a run."""
    runs = (run_of(path) for path in paths)
    for run in runs:
        if run is not None:
            return load_recipe(run.recipe_path, trust=trust)
    listed = " nor ".join(f"'{path}'" for path in paths)
    raise RequestError(f"recipe: missing; expected one, as neither {listed} is part of a run")


def _ends(
    context: RunContext, paths: tuple[Path, Path], trust: bool
) -> tuple[nn.Module, dict[str, Tensor], dict[str, Tensor]]:
    """The first network, and the states of both on its device, with its dtypes."""
    model, second = (_network(context, path, trust) for path in paths)
    _require_same_shape(model, second, paths)
    context.place_model(model)
    state = second.state_dict()
    one = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return model, one, {name: state[name].to(tensor) for name, tensor in one.items()}


def _network(context: RunContext, path: Path, trust: bool) -> nn.Module:
    """What a path holds: a finished run's model, or a checkpoint's, under its methods."""
    if run_of(path) is not None:
        finished = RunFolder(path).finished
        return open_run(path, finalized=finished, task=context.task, trust=trust).model
    return model_of_state(context.recipe, context.task, read_tensors(path), str(path))[0]


def _require_same_shape(first: nn.Module, second: nn.Module, paths: tuple[Path, Path]) -> None:
    """Refuses two networks without a line between them.

    Raises:
        RequestError: with the entries that differ, their shapes, or the buffers outside the states.
    """
    one, other = shapes(first.state_dict()), shapes(second.state_dict())
    differences = [
        *(f"{name} is in the first only" for name in one if name not in other),
        *(f"{name} is in the second only" for name in other if name not in one),
        *(
            f"{name} has shape {other[name]}, that of the first {one[name]}"
            for name in one
            if name in other and one[name] != other[name]
        ),
    ]
    if not differences:
        # Such as which channels a method has put where: a state of the second means another thing
        # in the first.
        buffers = dict(second.named_buffers())
        differences = [
            f"{name}, which is outside the state, has other values"
            for name, buffer in first.named_buffers()
            if name not in one and not torch.equal(buffer, buffers[name])
        ]
    if differences:
        shown = differences[:_MOST_DIFFERENCES]
        if more := len(differences) - len(shown):
            shown.append(f"and {more} more")
        listed = "\n  ".join(shown)
        raise RequestError(
            f"second: got '{paths[1]}', whose network is not of the shape of that of '{paths[0]}', "
            f"so that no line connects them; these differ:\n  {listed}"
        )


class _Scores:
    """Losses and errors of a model on the training and the validation samples."""

    def __init__(self, context: RunContext, samples: int | None) -> None:
        self._context = context
        parts = {"train": context.task.train, "validation": context.task.validation}
        self._parts = {name: _first(part, samples) for name, part in parts.items()}

    def __call__(self, model: nn.Module) -> dict[str, float]:
        costs = {}
        for part, dataset in self._parts.items():
            scores = evaluate(self._context, model, dataset)
            for name, value in _costs(self._context.task, scores).items():
                costs[f"{part} {name}"] = value
        return costs


def _costs(task: Task, scores: Mapping[str, float]) -> dict[str, float]:
    """What rises on a barrier: the loss, the error, and a headline that is better when lower."""
    costs = {"loss": scores["loss"]}
    if "accuracy" in scores:
        costs["error"] = 1 - scores["accuracy"]
    if not task.higher_is_better:
        costs[task.headline] = scores[task.headline]
    return costs


def _first(dataset: Dataset, samples: int | None) -> Dataset:
    if samples is None or samples >= len(dataset):
        return dataset
    return TensorDataset(*dataset.gather(torch.arange(samples)))
