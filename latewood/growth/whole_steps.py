"""Steps of torch's SGD, Adam and AdamW that know the stages of a weight, as one compiled pass.

To blend parts of a weight with what they were before a step, or to treat them as parameters, costs
a few per cent of a training step where that takes few milliseconds. These optimizers are known well
enough to take the step of the whole weight at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from latewood.growth.staged_weights import StagedWeight, StageTreatment
from latewood.kernels.staged_steps import StagedStep, StageNumbers, fits

__all__ = ["whole_step"]


def whole_step(
    optimizer: Optimizer,
    weight: StagedWeight,
    group: Mapping[str, Any],
    state: dict[str, Any],
    treatment: StageTreatment,
) -> StagedStep | None:
    """The coming step of a weight with its rates and counts.

    Args:
        optimizer: of the weight; a class of torch's itself, since others may step otherwise.
        weight: about to be stepped, with a gradient.
        group: that it is in.
        state: of the weight.
        treatment: of its stages.

    Returns:
        The step, to be taken by ``kernels.staged_steps.take_steps``; None where the optimizer, its
        options or the tensors are others than the compiled form knows, and in a first step, whose
        state is not there yet.
    """
    runs = weight.axis_runs if weight.is_in_few_pieces else None
    if runs is None or type(optimizer) not in (SGD, Adam, AdamW) or _is_unusual(group):
        return None
    parameter = weight.parameter
    names = _moments(optimizer, group)
    moments = [state.get(name) for name in names]
    gradient = parameter.grad
    if gradient is None or not all(isinstance(moment, Tensor) for moment in moments):
        return None
    if not fits(parameter, gradient, *[moment for moment in moments if moment is not None]):
        return None
    count: Tensor | None = None
    if type(optimizer) is SGD:
        numbers = [_descent(group, treatment.factors[stage]) for stage in weight.stages]
    else:
        count = state.get("step")
        if not isinstance(count, Tensor) or count.device.type != "cpu":
            return None
        whole = float(count) + 1.0
        own = {stage: treatment.counts[stage] for stage in weight.stages}
        steps = {stage: whole if n is None else n + 1.0 for stage, n in own.items()}
        numbers = [
            _adaptive(optimizer, group, treatment.factors[stage], steps[stage])
            for stage in weight.stages
        ]
    first, second = (*moments, None, None)[:2]
    return StagedStep(parameter, gradient, first, second, *runs, numbers, count)


def _is_unusual(group: Mapping[str, Any]) -> bool:
    """Whether a group has options that the compiled form does not know."""
    options = ("maximize", "amsgrad", "capturable", "differentiable", "fused")
    names = ("lr", "weight_decay", "momentum", "dampening", "eps")
    numbers = [*(group.get(name, 0.0) for name in names), *group.get("betas", ())]
    return any(group.get(option) for option in options) or not all(
        isinstance(number, float | int) and math.isfinite(number) for number in numbers
    )


def _moments(optimizer: Optimizer, group: Mapping[str, Any]) -> list[str]:
    if type(optimizer) is SGD:
        return ["momentum_buffer"] if group["momentum"] else []
    return ["exp_avg", "exp_avg_sq"]


def _descent(group: Mapping[str, Any], factor: float) -> StageNumbers:
    return StageNumbers(
        size=group["lr"] * factor,
        l2=group["weight_decay"],
        beta1=group["momentum"],
        rest1=1.0 - group["dampening"],
        nesterov=float(group["nesterov"]),
    )


def _adaptive(
    optimizer: Optimizer, group: Mapping[str, Any], factor: float, count: float
) -> StageNumbers:
    (beta1, beta2), decay, rate = group["betas"], group["weight_decay"], group["lr"] * factor
    decoupled = isinstance(optimizer, AdamW) or bool(group.get("decoupled_weight_decay"))
    return StageNumbers(
        size=rate / (1.0 - beta1**count),
        keep=1.0 - rate * decay if decoupled else 1.0,
        l2=0.0 if decoupled else decay,
        beta1=beta1,
        rest1=1.0 - beta1,
        beta2=beta2,
        rest2=1.0 - beta2,
        correction=math.sqrt(1.0 - beta2**count),
        eps=group["eps"],
    )
