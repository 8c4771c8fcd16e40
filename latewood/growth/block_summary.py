"""How the parts of a grown network that were born at different times stand to each other."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import nn

from latewood.core.coupling.trace import layer_tensors
from latewood.core.selection import stored_tensor
from latewood.growth.stage_blocks import block_norms
from latewood.growth.stages import Stages

__all__ = ["block_summary"]


def block_summary(
    model: nn.Module, stages: Stages, ratios: Mapping[str, Mapping[int, float]], count: int
) -> dict[str, float]:
    """Norms and learning rates by stage, over all weights of two or more axes that have grown.

    Args:
        model: that has grown.
        stages: of its channels.
        ratios: by weight and stage, learning rate relative to the oldest entries'.
        count: number of stages that the network will have.

    Returns:
        "norm/<stage>", the Frobenius norm of all entries of the stage, and "rate/<stage>", the mean
        ratio over the weights; both 0 while there is nothing of the stage, or nothing has grown.
    """
    squares = dict.fromkeys(range(count), 0.0)
    rates: dict[int, list[float]] = {stage: [] for stage in range(count)}
    for name, (module, attribute) in layer_tensors(model):
        vectors = stages.of(name)
        tensor = stored_tensor(module, attribute)
        if not vectors or tensor.dim() < 2 or not isinstance(tensor, nn.Parameter):
            continue
        for stage, norm in block_norms(tensor, vectors).items():
            squares[stage] += norm**2
        for stage, ratio in ratios.get(name, {}).items():
            rates[stage].append(ratio)
    norms = {f"norm/{stage}": math.sqrt(square) for stage, square in squares.items()}
    means = {f"rate/{stage}": sum(of) / max(len(of), 1) for stage, of in rates.items()}
    return norms | means
