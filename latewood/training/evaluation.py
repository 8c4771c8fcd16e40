"""Scoring a model on a data set, and what is left of it after the methods are finalized."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from latewood.core.batch_norm import recalibrate_batch_norm
from latewood.core.modes import evaluated
from latewood.tasks import Batch, Dataset, batches
from latewood.terminal.progress import Advance, unseen
from latewood.training.randomness import derive
from latewood.training.run_context import RunContext

__all__ = ["Recalibration", "evaluate", "recalibrate", "recalibration_batches"]


@torch.no_grad()
def evaluate(
    context: RunContext,
    model: nn.Module,
    dataset: Dataset | None = None,
    *,
    advance: Advance = unseen,
) -> dict[str, float]:
    """The objective's means over a data set, each process scoring its share.

    The randomness that an objective draws is the same at every evaluation, so that two differ by
    the model alone.

    Args:
        context: of the run.
        model: what to score; its mode is left as it was.
        dataset: where; the task's validation samples if None.
        advance: shows how far it is, as a note beside the steps of the run.

    Returns:
        measures by name, "loss" among them, the same on all processes.
    """
    processes, recipe, task = context.processes, context.recipe, context.task
    dataset = task.validation if dataset is None else dataset
    processes.share_buffers(model)
    noise = torch.Generator(processes.device)
    names: list[str] = []
    rows: list[torch.Tensor] = []
    sample_counts: list[float] = []
    with evaluated(model):
        parts = batches(
            dataset,
            batch_size=recipe.last_batch_size,
            seed=0,
            epoch=0,
            shuffle=False,
            rank=processes.rank,
            world_size=processes.count,
        )
        for number, (batch, weight) in enumerate(parts):
            noise.manual_seed(derive(recipe.seed, "evaluate", number, processes.rank))
            with processes.autocast():
                scores = task.objective.evaluate(model, context.placed(batch), noise)
            before = number * recipe.last_batch_size
            in_batch = min(recipe.last_batch_size, len(dataset) - before)
            names = names or list(scores)
            rows.append(torch.stack([scores[name].detach() for name in names]))
            sample_counts.append(weight * in_batch / processes.count)
            advance(0, f"scoring {before + in_batch} of {len(dataset)} samples")
    # Summed in double on the CPU: not every accelerator has it.
    means_of_batches = torch.stack(rows).cpu().double()
    samples = torch.tensor(sample_counts, dtype=torch.float64)[:, None]
    # Not a product with 0: a process without a sample must not bring in its NaN.
    weighted = torch.where(samples > 0, means_of_batches * samples, 0.0)
    total = weighted.sum(dim=0).tolist()
    means = [value / len(dataset) for value in processes.sum(total)]
    return task.objective.summarise(dict(zip(names, means, strict=True)))


class Recalibration:
    """What batch-norm statistics are renewed on: the same batches and noise at every evaluation.

    Args:
        context: of the run.
    """

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._noise = torch.Generator(context.processes.device)

    def __iter__(self) -> Iterator[Batch]:
        """The batches of ``recalibration_batches``; noise begins anew."""
        self._noise.manual_seed(derive(self._context.recipe.seed, "recalibrate"))
        return recalibration_batches(self._context)

    def forward(self, model: nn.Module, batch: Batch) -> object:
        """Runs a model on a batch as in training, with noise that goes on from batch to batch."""
        with self._context.processes.autocast():
            return self._context.task.objective.loss(model, batch, self._noise)


def recalibrate(context: RunContext, model: nn.Module) -> bool:
    """Renews batch-norm statistics on training batches, the same ones in every process.

    Returns:
        whether the model has batch norms.
    """
    seen = Recalibration(context)
    return recalibrate_batch_norm(model, seen, seen.forward) > 0


def recalibration_batches(context: RunContext) -> Iterator[Batch]:
    """Training batches to renew batch-norm statistics on, the same ones in every process."""
    recipe, dataset = context.recipe, context.task.train
    batch_size = recipe.last_batch_size
    full = batch_size <= len(dataset)
    stream = batches(dataset, batch_size=batch_size, seed=recipe.seed, epoch=0, drop_last=full)
    for number, (batch, _) in enumerate(stream):
        if number == recipe.recalibration_batches:
            return
        yield context.placed(batch)
