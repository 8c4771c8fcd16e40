"""The loss that a run measures when its network changes: always of the same training samples."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from latewood.tasks import Batch, Dataset, epoch_order
from latewood.training.evaluation import evaluate
from latewood.training.randomness import derive
from latewood.training.run_context import RunContext

__all__ = ["loss_meter"]

_MOST_SAMPLES = 1024


class _Sample:
    """Some samples of a data set, the same in all processes."""

    def __init__(self, dataset: Dataset, indices: Tensor) -> None:
        self._dataset, self._indices = dataset, indices

    def __len__(self) -> int:
        return len(self._indices)

    def gather(self, indices: Tensor) -> Batch:
        return self._dataset.gather(self._indices[indices])


def loss_meter(context: RunContext) -> Callable[[nn.Module], float]:
    """What gives the loss of a model, in evaluation mode, on up to 1,024 training samples.

    Args:
        context: of the run; the samples follow its seed.

    Returns:
        A function that gives the same value in all processes, and leaves the model in its mode.
    """
    train = context.task.train
    seed = derive(context.recipe.seed, "event loss")
    sample = _Sample(train, epoch_order(len(train), seed=seed, epoch=0)[:_MOST_SAMPLES])
    return lambda model: evaluate(context, model, sample)["loss"]
