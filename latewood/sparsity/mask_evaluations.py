"""Four evaluations of a network under soft masks: soft, hard, recalibrated, and undecided."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from latewood.core import recalibrate_batch_norm
from latewood.core.modes import evaluated
from latewood.sparsity.continuous_sparsification import ContinuousSparsification
from latewood.sparsity.soft_mask import MOST_UNDECIDED

__all__ = ["MaskEvaluations", "evaluate_masks"]


@dataclass(frozen=True)
class MaskEvaluations:
    """What a network under soft masks scores, and what it will once they are hard.

    Args:
        soft: score with the masks that were trained.
        hard: score with the binary masks.
        recalibrated: score with the binary masks and batch-norm statistics measured anew; that of
            ``hard`` if the model has no batch norm or no batches were given.
        undecided: fraction of the masked weights with |temperature * logit| < 4.
    """

    soft: float
    hard: float
    recalibrated: float
    undecided: float


def evaluate_masks(
    method: ContinuousSparsification,
    score: Callable[[nn.Module], float],
    batches: Iterable[tuple[Tensor, ...]] = (),
    *,
    forward: Callable[[nn.Module, tuple[Tensor, ...]], object] | None = None,
    tolerance: float = 0.01,
) -> MaskEvaluations:
    """Scores a network soft, hard, and hard with batch norm recalibrated; nothing is changed.

    Args:
        method: whose masks, before ``finalize``.
        score: ``score(model) -> number`` such as accuracy in [0, 1]; called three times at most,
            with the model in evaluation mode.
        batches: training batches, some 2,000 samples of them, to recalibrate batch norm with.
        forward: how to run the model on a batch; by default ``model(batch[0])``.
        tolerance: largest difference of soft and hard that goes without a warning, in the units of
            ``score``: 0.01 is one point of accuracy.

    Returns:
        The four evaluations.

    Raises:
        RequestError: after ``finalize``.
    """
    batches = list(batches)
    with method.hard() as model:
        norms = [
            buffer
            for module in model.modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
            for buffer in module.buffers(recurse=False)
        ]
        before = [buffer.clone() for buffer in norms]
        try:
            with evaluated(model):
                hard = recalibrated = score(model)
                if batches and recalibrate_batch_norm(model, batches, forward):
                    recalibrated = score(model)
        finally:
            with torch.no_grad():
                for buffer, value in zip(norms, before, strict=True):
                    buffer.copy_(value)
    with evaluated(model):
        soft = score(model)
    undecided = method.metrics()["undecided"]
    # Not ">", which a score of nan would pass.
    if not abs(soft - hard) <= tolerance or undecided > MOST_UNDECIDED:
        warnings.warn(
            f"soft and hard disagree: {soft:.4g} with the soft masks, {hard:.4g} with the binary "
            f"ones, {recalibrated:.4g} after recalibrating batch norm, {undecided:.1%} undecided; "
            "a higher final_temperature, logits whose learning rate decays later, or a lower "
            "initial_logit decide more",
            UserWarning,
            stacklevel=2,
        )
    return MaskEvaluations(soft, hard, recalibrated, undecided)
